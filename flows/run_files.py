"""What a run reads and writes, found and checked: input, image root and output, here or in an object store."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flows.errors import UsageError
from flows.plan import Chunk, Source, check_source
from flows.serving.record import state_folder
from flows.shard import Shard
from flows.storage.locations import ImageRoot, Location, check_distinct, image_root_at, local_copy
from flows.storage.mirror import Files, opened
from flows.store import OUR_FIELDS
from flows.workspace import Workspace

Opened = TypeVar("Opened")


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
            await asyncio.to_thread(self.output.keep, chunk)
        except OSError as error:
            self.warn(f"answers of chunk {chunk.number} are kept on this machine only, for now: {error}")

    async def publish(self) -> None:
        """Makes output, failures and reports known to everybody. Raises OSError."""
        await asyncio.to_thread(self.output.publish)


@asynccontextmanager
async def opened_files(
    *,
    input: Location,  # noqa: A002 - these are the flow's parameters, by name
    image_root: Location,
    output: Location,
    shard: str,
    image_column: str,
    caption_column: str,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> AsyncIterator[RunFiles]:
    """The files of a run, for as long as the context lasts. Raises UsageError for what cannot be used."""
    copies = state_folder() / "inputs"
    check_distinct(input, output)
    async with _in_thread(opened(output, shard, say)) as files:
        path = await asyncio.to_thread(local_copy, input, copies)
        source = Source(path, image_column, caption_column, Shard.parse(shard) if shard else None)
        root = image_root_at(image_root)
        check_paths(source, root, files.workspace)
        columns = await asyncio.to_thread(check_source, source)
        if replaced := [name for name in columns if name in replaced_columns(source)]:
            names = ", ".join(map(repr, replaced))
            warn(f"the input's columns {names} are replaced in the output by ours of these names")
        yield RunFiles(source, root, files, warn)


@asynccontextmanager
async def _in_thread(context: AbstractContextManager[Opened]) -> AsyncIterator[Opened]:
    """A context that takes its time to be entered and left."""
    value = await asyncio.to_thread(context.__enter__)
    try:
        yield value
    finally:
        await asyncio.shield(asyncio.to_thread(context.__exit__, None, None, None))


def replaced_columns(source: Source) -> set[str]:
    """Names of input columns whose values the output does not keep."""
    asked = {"image_path", "caption"} - {source.image_column, source.caption_column or "caption"}
    return asked | set(OUR_FIELDS)


def check_paths(source: Source, image_root: ImageRoot, workspace: Workspace) -> None:
    """Raises UsageError where the image root is no folder, or the output would overwrite the input."""
    if isinstance(image_root, Path):
        if not image_root.is_dir():
            raise UsageError(
                f"image root {str(image_root)!r} is not a folder: set --image-root to where the images lie"
            )
        if not os.access(image_root, os.R_OK | os.X_OK):
            raise UsageError(f"image root {str(image_root)!r} cannot be read by this user")
    if source.path.resolve() in workspace.outputs:
        raise UsageError(f"input and output are both {source.path.resolve()}: choose another --output")


def is_image_file(root: ImageRoot, path: str) -> bool:
    """Whether there is a file of this name in an image root."""
    try:
        return (root / path).is_file() if isinstance(root, Path) else root.has(path)
    except (OSError, ValueError):
        return False
