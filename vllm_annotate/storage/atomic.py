"""Atomic replacement of files: write a temporary file, sync it, rename it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_annotate.storage.json_text import loads

NAME_BYTES = 100  # of the name that goes into the temporary one, which then fits wherever the name does


@contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file that replaces `path` once it is complete and synced. On an error, `path` stays as it was."""
    with replacing_path(path) as unfinished, unfinished.open("wb") as file:
        yield file


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It replaces `path` once it is synced.

    Each `path` has one temporary path, so the next attempt overwrites what a killed one left behind.
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
    """Returns the temporary name of a file: readable, and unique to the file's name."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return f".{os.fsencode(name)[-NAME_BYTES:].decode(errors='ignore')}.{digest}.unfinished"


def sync_file(path: Path) -> None:
    """Syncs the content of a file to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Syncs renames and removals in `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: bytes) -> None:
    """Appends a line, durably, and after what a kill may have cut off."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = size > 0 and file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line)
        file.flush()
        os.fsync(file.fileno())
    if not size:
        sync_folder(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in `path`, or None if the file does not exist. Raises ValueError for other content."""
    try:
        value = loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not contain a JSON object")  # noqa: TRY004 - as for text that is not JSON
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces `path` with `value`, atomically and durably."""
    with replacing(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")
