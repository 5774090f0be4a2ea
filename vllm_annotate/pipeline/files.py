"""Finds and checks the files of a run: input, image root and output, local or in an object store."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.inputs.selection import Selection
from vllm_annotate.inputs.source import PROBED_ROWS, Source, left_out, not_utf_8
from vllm_annotate.job import Job
from vllm_annotate.pipeline.found_input import find_input
from vllm_annotate.results.files import Files
from vllm_annotate.results.lines import OUR_FIELDS
from vllm_annotate.results.mirror import output_files
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.threads import in_thread, run_to_end

KEEP_SECONDS = 60  # of answers, about: what a power loss or a lost machine costs


@dataclass(frozen=True)
class RunFiles:
    """The input, image root and output of a run, all checked."""

    source: Source
    image_root: ImageRoot
    output: Files
    warn: Callable[[str], None]
    keep_seconds: float = KEEP_SECONDS

    @property
    def workspace(self) -> Workspace:
        """The files of the run, on this machine."""
        return self.output.workspace

    @asynccontextmanager
    async def keeping(self, chunk: Chunk, stop: Callable[[BaseException], None]) -> AsyncIterator[None]:
        """Syncs the answers of a chunk, or uploads them to an object store: every minute, and at the end.

        Calls `stop` once another run has taken over the output.
        """

        async def keep_again() -> None:
            while True:
                await asyncio.sleep(self.keep_seconds)
                try:
                    await self._keep(chunk)
                except UsageError as error:
                    stop(error)

        repeating = asyncio.create_task(keep_again())
        try:
            yield
        finally:
            repeating.cancel()
            await asyncio.gather(repeating, return_exceptions=True)  # an error comes again
            await self._keep(chunk)

    async def _keep(self, chunk: Chunk) -> None:
        try:
            await run_to_end(self.output.keep, chunk)
        except OSError as error:
            self.warn(f"answers of chunk {chunk.number} are saved on this machine only, for now: {error}")

    async def publish(self) -> None:
        """Publishes output, failures and reports. Raises OSError."""
        await run_to_end(self.output.publish)


@asynccontextmanager
async def run_files(job: Job, say: Callable[[str], None], warn: Callable[[str], None]) -> AsyncIterator[RunFiles]:
    """Opens the files of a run. Raises UsageError if one cannot be used."""
    check_distinct(job.input, job.output)
    stopped = threading.Event()
    output = in_thread(output_files(job.output, job.shard, say, stopped), give_up=stopped.set)
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(output)
        folder = stack.enter_context(TemporaryDirectory(prefix="vllm-annotate-"))
        looking = partial(find_input, job, Path(folder), files.workspace.retried, stopped)
        found = await run_to_end(looking, give_up=stopped.set)
        source = found.source
        if found.is_inside and job.image_root is not None:
            warn(f"image root {job.image_root} is not used: the images are inside the input")
        if replaced := [name for name in found.columns if name in replaced_columns(source)]:
            names = ", ".join(map(repr, replaced))
            warn(f"the output replaces these input columns with its own: {names}")
        if missing := left_out(source):
            warn(f"the output leaves out input columns with bytes, as JSON has none: {', '.join(map(repr, missing))}")
        if rows := await run_to_end(not_utf_8, source):
            warn(
                f"{rows} of the first {PROBED_ROWS} lines of {source.given} have bytes that are not UTF-8, which the "
                "model and the output get as U+FFFD: convert the file, as with iconv -f GB18030 -t UTF-8, "
                "unless they are few"
            )
        selection = Selection(job.limit, job.sample, job.sample_seed)
        yield RunFiles(replace(source, selection=selection), found.images, files, warn)


def replaced_columns(source: Source) -> set[str]:
    """Names of the input columns that the output overwrites."""
    asked = {"image_path", "caption"} - {source.image_column, source.caption_column or "caption"}
    return asked | set(OUR_FIELDS)


def check_distinct(source: Path | str, output: Path | str) -> None:
    """Raises UsageError if the output would overwrite the input."""
    # Not Path.resolve, which fails for links that lead to each other.
    same = [where if isinstance(where, str) else os.path.realpath(where.expanduser()) for where in (source, output)]
    if same[0] == same[1]:
        raise UsageError(f"input and output are both {same[0]}: choose another --output")


def is_image_file(root: ImageRoot, path: str) -> bool:
    """Whether the image root has this file."""
    try:
        return (root / path).is_file() if isinstance(root, Path) else root.has(path)
    except (OSError, ValueError):
        return False
