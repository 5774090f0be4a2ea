"""Finds and checks the files of a run: input, image root and output, local or in an object store."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.inputs.selection import Selection
from vllm_annotate.inputs.source import PROBED_ROWS, Source, check_source, left_out, not_utf_8
from vllm_annotate.job import Job
from vllm_annotate.results.files import Files
from vllm_annotate.results.lines import OUR_FIELDS
from vllm_annotate.results.mirror import output_files
from vllm_annotate.storage.downloads import local_copy
from vllm_annotate.storage.locations import ImageRoot, image_root_at
from vllm_annotate.storage.shard import Shard
from vllm_annotate.storage.state_folder import state_folder
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
    async def keeping(self, chunk: Chunk) -> AsyncIterator[None]:
        """Syncs the answers of a chunk, or uploads them to an object store: every minute, and at the end."""

        async def keep_again() -> None:
            while True:
                await asyncio.sleep(self.keep_seconds)
                await self._keep(chunk)

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
    async with in_thread(output_files(job.output, job.shard, say, stopped), give_up=stopped.set) as files:
        root = found_image_root(job.image_root)
        shard = Shard.parse(job.shard) if job.shard else None
        source, columns = await run_to_end(
            found_source, job.input, job.image_column, job.caption_column, shard, stopped, give_up=stopped.set
        )
        if replaced := [name for name in columns if name in replaced_columns(source)]:
            names = ", ".join(map(repr, replaced))
            warn(f"the output replaces these input columns with its own: {names}")
        if missing := left_out(source):
            warn(f"the output leaves out input columns with bytes, as JSON has none: {', '.join(map(repr, missing))}")
        if rows := await run_to_end(not_utf_8, source):
            warn(
                f"{rows} of the first {PROBED_ROWS} lines of {source.path} have bytes that are not UTF-8, which the "
                "model and the output get as U+FFFD: convert the file, as with iconv -f GB18030 -t UTF-8, "
                "unless they are few"
            )
        selection = Selection(job.limit, job.sample, job.sample_seed)
        yield RunFiles(replace(source, selection=selection), root, files, warn)


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


def found_image_root(where: Path | str) -> ImageRoot:
    """The image root. Raises UsageError if it is not a readable folder."""
    root = image_root_at(where)
    if isinstance(root, Path) and not root.is_dir():
        raise UsageError(f"image root {str(root)!r} is not a folder: set --image-root to the folder with the images")
    if isinstance(root, Path) and not os.access(root, os.R_OK | os.X_OK):
        raise UsageError(f"this user cannot read image root {str(root)!r}: change its permissions")
    return root


def found_source(
    where: Path | str,
    image_column: str,
    caption_column: str,
    shard: Shard | None = None,
    stopped: threading.Event | None = None,
) -> tuple[Source, list[str]]:
    """The input, downloaded if needed, and its columns. Raises UsageError if it is unreadable or lacks a named column.

    Setting `stopped` cancels the download.
    """
    copy = local_copy(where, state_folder() / "inputs", stopped or threading.Event())
    source = Source(copy, image_column, caption_column, shard)
    return source, check_source(source)


def is_image_file(root: ImageRoot, path: str) -> bool:
    """Whether the image root has this file."""
    try:
        return (root / path).is_file() if isinstance(root, Path) else root.has(path)
    except (OSError, ValueError):
        return False
