"""An append-only JSONL file with an `image_path` per line, repaired after a kill, and read line by line."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vllm_annotate.results.lines import path_of
from vllm_annotate.storage.atomic import sync_folder

BLOCK_BYTES = 1024 * 1024


class PartFile:
    """A part that is written. Opening it removes a line that a kill cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with whole_lines(path) as lines:
            self.paths = set(lines)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._is_torn = False  # ends in an incomplete line

    def append(self, image_path: str, line: bytes) -> None:
        """Appends the line in one write, after which it survives a SIGKILL. Raises OSError.

        A write that fails midway is undone: it would corrupt the next line.
        """
        size = os.fstat(self._descriptor).st_size
        view = memoryview(b"\n" + line if self._is_torn else line)
        try:
            while view:  # a full disk or a signal can cut a write short
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            self._is_torn = True
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
                self._is_torn = False
            raise
        self._is_torn = False
        self.paths.add(image_path)

    def close(self) -> None:
        """Syncs the file to disk and closes it."""
        try:
            os.fsync(self._descriptor)
            sync_folder(self.path.parent)
        finally:
            os.close(self._descriptor)


class WholeLines(Mapping[str, bytes]):
    """The lines of an open part by image path, the last of each. Only their places are in memory."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self._places = {} if file is None else _places(file)

    def __getitem__(self, image_path: str) -> bytes:
        start, length = self._places[image_path]
        assert self._file is not None  # noqa: S101 - for the type checker
        line = os.pread(self._file.fileno(), length, start)
        if len(line) != length:
            raise OSError(errno.EIO, "ends too early", self._file.name)
        return line

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@contextmanager
def whole_lines(path: Path) -> Iterator[WholeLines]:
    """Opens a part to read; without a file it has no lines.

    Repairs its end: a last line without a newline is completed if it is a JSON object, else removed. (No proper prefix
    of an object is an object.)
    """
    try:
        file = path.open("rb+", buffering=BLOCK_BYTES)
    except FileNotFoundError:
        yield WholeLines(None)
        return
    with file:
        yield WholeLines(file)


def _places(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Start and length of each whole line, in bytes."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for line in file:
        image_path, length = path_of(line), len(line)
        if not line.endswith(b"\n"):
            if image_path is None:
                file.truncate(end)
                break
            file.write(b"\n")
            file.flush()
            length += 1
        if image_path is not None:
            places[image_path] = end, length
        end += length
    return places
