"""What shows that a file or an object is another one, or was changed."""

import os
from pathlib import Path
from typing import IO, Any, NamedTuple

from vllm_annotate.storage.locations import file_system, reaching, version_of

Version = list[int] | str | None  # of a file or an object, to store; None if there is none


def file_version(path: Path) -> list[int] | None:
    """Returns size in bytes and modification time in ns, to store; None if the file does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


class FileState(NamedTuple):
    """Shows, within a run, whether a file was changed or replaced."""

    device: int
    inode: int
    size: int  # bytes
    modified: int  # ns
    changed: int  # ns


def file_state(path: Path) -> FileState | None:
    """Returns the state of a file; None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _state(status)


def state_of(file: IO[Any]) -> FileState:
    """Returns the state of an open file."""
    return _state(os.fstat(file.fileno()))


def _state(status: os.stat_result) -> FileState:
    return FileState(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def version_at(where: Path | str) -> Version:
    """Returns the version of a file or an object, to store; None if it does not exist. Raises OSError."""
    if isinstance(where, Path):
        return file_version(where)
    fs, path = file_system(where)
    with reaching(where):
        try:
            return version_of(fs.info(path))
        except FileNotFoundError:
            return None
