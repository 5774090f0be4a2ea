"""Files that are whole or not there: written beside, synced, renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from vllm_annotate.storage.json_text import loads

NAME_BYTES = 100  # of an unfinished file's name, so that it fits wherever the file's own name does

# What the disk says to every write, not to this one alone: a run stops then, instead of asking for answers to lose.
FULL = {
    errno.ENOSPC: "is full: make room",
    errno.EDQUOT: "is over the quota of this user: make room",
    errno.EROFS: "cannot be written to: mount it for writing",
}


@contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of `path` once it is whole and on disk; on an error `path` stays as it was."""
    with replacing_path(path) as unfinished, unfinished.open("wb") as file:
        yield file


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once it is on disk.

    It is always the same for one `path` and another for every other, so the next try replaces what a kill left behind.
    """
    unfinished = path.with_name(unfinished_name(path.name))
    try:
        yield unfinished
        sync_file(unfinished)
        if path.exists():
            shutil.copymode(path, unfinished)
        unfinished.replace(path)
        sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_name(name: str) -> str:
    """The name of a file until it is whole: readable, and never that of another file's, whatever their names share."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return f".{os.fsencode(name)[-NAME_BYTES:].decode(errors='ignore')}.{digest}.unfinished"


def sync_file(path: Path) -> None:
    """Makes the content of a file survive a power loss."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None if there is no file. Raises ValueError for a file that holds anything else."""
    try:
        value = loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")  # noqa: TRY004 - as for text that is no JSON at all
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces `path` by `value`, atomically and durably."""
    with replacing(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")


def disk_is_full(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether every further write will fail as this one did."""
    return isinstance(error, OSError) and error.errno in FULL


def explained(error: OSError, path: Path | str) -> str:
    """What to tell of a file that could not be read or written, and what to do about it."""
    where = error.filename or path
    if error.errno in FULL:
        return f"the disk of {where} {FULL[error.errno]} and run again; all answers are kept ({error.strerror})"
    return f"{where}: {error.strerror or error}; fix that and run again, all answers are kept"
