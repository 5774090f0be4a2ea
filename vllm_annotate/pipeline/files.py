"""Finds and checks the files of a run: input, image root and output, local or in an object store."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.input_images import InputImages
from vllm_annotate.inputs.listing import Inputs, list_inputs, names_one_file, shown
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.inputs.selection import Selection
from vllm_annotate.inputs.source import PROBED_ROWS, Source, left_out, not_utf_8
from vllm_annotate.job import Job
from vllm_annotate.pipeline.found_input import FoundInput, find_input, found_image_root
from vllm_annotate.results.files import Files
from vllm_annotate.results.lines import OUR_FIELDS
from vllm_annotate.results.output_files import output_files
from vllm_annotate.results.shard_files import check_count
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.shard import Shard
from vllm_annotate.storage.workspace import Workspace, own_paths
from vllm_annotate.threads import in_thread, run_to_end

KEEP_SECONDS = 60  # of answers, about: what a power loss or a lost machine costs


@dataclass(frozen=True)
class RunFiles:
    """The input, image root and output of a run, all checked."""

    source: Source | None  # None if there are several
    image_root: ImageRoot
    output: Files
    warn: Callable[[str], None]
    inputs: Inputs | None = None  # the files of an output that is a folder
    name: str = ""  # of an input file among several
    keep_seconds: float = KEEP_SECONDS
    held: ExitStack = field(default_factory=ExitStack)  # locks of input files

    @property
    def workspace(self) -> Workspace:
        """The files of the run, on this machine."""
        return self.output.workspace

    @property
    def is_remote(self) -> bool:
        """Whether images come from an object store."""
        return not isinstance(self.image_root, Path) and self.image_root.is_remote

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
                    return

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
        if files.workspace.is_folder:
            several = await run_to_end(_several, job, files, warn)
            with several.held:
                yield several
            return
        check_single(job)
        await run_to_end(check_count, job.output, Shard.parse(job.shard).count if job.shard else 0)
        folder = stack.enter_context(TemporaryDirectory(prefix="vllm-annotate-"))
        looking = partial(find_input, job, Path(folder), files.workspace.retried, stopped)
        found = await run_to_end(looking, give_up=stopped.set)
        await run_to_end(warn_about, found, job, warn)
        source = replace(found.source, selection=Selection(job.limit, job.sample, job.sample_seed))
        yield RunFiles(source, found.images, files, warn)


def _several(job: Job, files: Files, warn: Callable[[str], None]) -> RunFiles:
    """The files of a run over the files of an input. They are opened one by one, later."""
    inputs = input_files(job)
    if inputs.of_runs:
        outputs = ", ".join(inputs.of_runs[:3]) + (", …" if len(inputs.of_runs) > 3 else "")
        warn(f"what earlier runs wrote is no input: {outputs}, and the files beside")
    return RunFiles(None, several_images(job, inputs), files, warn, inputs)


def check_single(job: Job) -> None:
    """Raises UsageError if several files would go into an output that is one."""
    if not names_one_file(job.input):
        raise UsageError(
            f"input {shown(job.input)!r} may be several files, and output {str(job.output)!r} is one: choose a "
            f"folder, which has no ending, such as --output {str(job.output).removesuffix('.jsonl')}"
        )


def input_files(job: Job) -> Inputs:
    """The files of a job's input or of its shard, without those of its output. Raises UsageError as `list_inputs`."""
    inputs = list_inputs(job.input, own_paths(job.output))
    inputs = replace(inputs, files=[replace(file, output_format=job.output_format) for file in inputs.files])
    if job.sample:
        inputs = inputs.sampled(job.sample, job.sample_seed)
    return inputs.of_shard(Shard.parse(job.shard)) if job.shard else inputs


def several_images(job: Job, inputs: Inputs) -> ImageRoot:
    """The images of a job with these input files. Raises UsageError if its image root cannot be read."""
    if job.image_root is None:
        return InputImages(inputs.files, job.image_column)
    return found_image_root(job.image_root, job.image_column)


def warn_about(found: FoundInput, job: Job, warn: Callable[[str], None]) -> None:
    """Tells what of an input does not reach the output as it is."""
    source = found.source
    if found.is_inside and job.image_root is not None:
        warn(f"image root {job.image_root} is not used: the images are inside the input")
    if endings := getattr(found.images, "passed_over", ()):
        some = ", ".join(f".{ending}" for ending in endings[:5])
        warn(f"images whose names have further dots are passed over beside that of their key: {some}")
    own = getattr(found.images, "replaced", [])  # their rows are written with another
    if replaced := [*own, *(name for name in found.columns if name in replaced_columns(source))]:
        warn(f"the output replaces these input columns with its own: {', '.join(map(repr, replaced))}")
    if missing := [*left_out(source), *getattr(found.images, "left_out", ())]:
        warn(f"the output leaves out input columns with bytes, as JSON has none: {', '.join(map(repr, missing))}")
    if rows := not_utf_8(source):
        warn(
            f"{rows} of the first {PROBED_ROWS} lines of {source.given} have bytes that are not UTF-8, which the "
            "model and the output get as U+FFFD: convert the file, as with iconv -f GB18030 -t UTF-8, "
            "unless they are few"
        )


def replaced_columns(source: Source) -> set[str]:
    """Names of the input columns that the output overwrites."""
    asked = {"image_path", "caption"} - {source.image_column, source.caption_column or "caption"}
    return asked | set(OUR_FIELDS)


def check_distinct(given: Path | str | list[Path | str], output: Path | str) -> None:
    """Raises UsageError if the output would overwrite the input."""
    # Not Path.resolve, which fails for links that lead to each other.
    places = given if isinstance(given, list) else [given]
    inputs, (result,) = map(_real, places), map(_real, [output])
    if result in inputs:
        raise UsageError(f"input and output are both {result}: choose another --output")


def _real(where: Path | str) -> str:
    return where if isinstance(where, str) else os.path.realpath(where.expanduser())


def is_image_file(root: ImageRoot, path: str) -> bool:
    """Whether the image root has this file."""
    try:
        return (root / path).is_file() if isinstance(root, Path) else root.has(path)
    except (OSError, ValueError):
        return False
