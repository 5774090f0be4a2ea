"""What a run reads and writes, found and checked: input, image root and output, here or in an object store."""

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.inputs.source import Source, check_source
from vllm_annotate.job import Job
from vllm_annotate.results.files import Files
from vllm_annotate.results.lines import OUR_FIELDS
from vllm_annotate.results.mirror import output_files
from vllm_annotate.storage.locations import ImageRoot, image_root_at, local_copy
from vllm_annotate.storage.shard import Shard
from vllm_annotate.storage.state_folder import state_folder
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.threads import in_thread, run_to_end


@dataclass(frozen=True)
class RunFiles:
    """An input that can be read, the root of its images, and the output's workspace."""

    source: Source
    image_root: ImageRoot
    output: Files
    warn: Callable[[str], None]

    @property
    def workspace(self) -> Workspace:
        """The files of the run, on this machine."""
        return self.output.workspace

    async def keep(self, chunk: Chunk) -> None:
        """Makes the answers of a chunk outlive this machine, where the output does."""
        try:
            await run_to_end(self.output.keep, chunk)
        except OSError as error:
            self.warn(f"answers of chunk {chunk.number} are kept on this machine only, for now: {error}")

    async def publish(self) -> None:
        """Makes output, failures and reports known to everybody. Raises OSError."""
        await run_to_end(self.output.publish)


@asynccontextmanager
async def run_files(job: Job, say: Callable[[str], None], warn: Callable[[str], None]) -> AsyncIterator[RunFiles]:
    """The files of a run, for as long as the context lasts. Raises UsageError for what cannot be used."""
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
            warn(f"the input's columns {names} are replaced in the output by ours of these names")
        yield RunFiles(source, root, files, warn)


def replaced_columns(source: Source) -> set[str]:
    """Names of input columns whose values the output does not keep."""
    asked = {"image_path", "caption"} - {source.image_column, source.caption_column or "caption"}
    return asked | set(OUR_FIELDS)


def check_distinct(source: Path | str, output: Path | str) -> None:
    """Raises UsageError where the output would overwrite the input."""
    same = [where if isinstance(where, str) else where.expanduser().resolve() for where in (source, output)]
    if same[0] == same[1]:
        raise UsageError(f"input and output are both {same[0]}: choose another --output")


def found_image_root(where: Path | str) -> ImageRoot:
    """What image paths are relative to. Raises UsageError where it is no folder, or not for us."""
    root = image_root_at(where)
    if isinstance(root, Path) and not root.is_dir():
        raise UsageError(f"image root {str(root)!r} is not a folder: set --image-root to where the images lie")
    if isinstance(root, Path) and not os.access(root, os.R_OK | os.X_OK):
        raise UsageError(f"image root {str(root)!r} cannot be read by this user")
    return root


def found_source(
    where: Path | str,
    image_column: str,
    caption_column: str,
    shard: Shard | None = None,
    stopped: threading.Event | None = None,
) -> tuple[Source, list[str]]:
    """The input, on this machine, and its columns. Raises UsageError where it cannot be read or lacks those named.

    `stopped` is set to end its download.
    """
    copy = local_copy(where, state_folder() / "inputs", stopped or threading.Event())
    source = Source(copy, image_column, caption_column, shard)
    return source, check_source(source)


def is_image_file(root: ImageRoot, path: str) -> bool:
    """Whether there is a file of this name in an image root."""
    try:
        return (root / path).is_file() if isinstance(root, Path) else root.has(path)
    except (OSError, ValueError):
        return False
