"""A log of what was appended to a file, by which a run that resumes knows its own lines from those of others."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_annotate.storage.json_text import loads

Version = list[int]  # size in bytes and modification time in ns of a file


@dataclass
class Append:
    """An append to a file: what the file was before, where the lines begin and end, and what the file was after it.

    `left` is None if the append did not come to its end. It was killed or taken back: the file may be of any size
    between `start` and `end`.
    """

    inode: int
    found: Version | None  # None: there was no file
    start: int
    end: int
    left: Version | None = None

    def leads_to(self, version: Version | None) -> bool:
        """Whether the file can be of this version if nobody else wrote to it."""
        if self.left is not None:
            return version == self.left
        return version is not None and self.start <= version[0] <= self.end


def log_begin(log: Path, append: Append) -> None:
    """Logs an append before it begins, durably."""
    _write(log, asdict(append), sync=True)


def log_end(log: Path, left: Version) -> None:
    """Logs that the last append came to its end. Without that line it counts as far as it came."""
    _write(log, {"left": left}, sync=False)


def read_appends(log: Path) -> list[Append]:
    """Returns the appends in their order; none if the log is damaged or missing."""
    try:
        return list(_appends(log.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, LookupError, AttributeError, OverflowError):
        return []


def only_appended(log: Path, before: Version | None, path: Path, *, whole: bool = False) -> bool:
    """Whether the appends alone made the file at `path` of one that had the version `before`.

    After an append that did not come to its end, an edit that keeps the size would not show: not so if all must be
    `whole`.
    """
    appends = read_appends(log)
    if whole and any(append.left is None for append in appends):
        return False
    if not appends or not path.exists():
        return False
    status = path.stat()
    if not is_same(before, appends[0].found) or any(append.inode != status.st_ino for append in appends):
        return False
    found = [append.found for append in appends[1:]] + [[status.st_size, status.st_mtime_ns]]
    return all(append.leads_to(version) for append, version in zip(appends, found, strict=True))


def is_same(before: Version | None, now: Version | None) -> bool:
    """Whether a file has the rows that it had: a run may be killed when it has made one, before its first append."""
    return before == now or (before is None and now is not None and now[0] == 0)


def appended_ranges(log: Path, size: int) -> Iterator[tuple[int, int]]:
    """Yields start and end of the lines that were appended to a file, which now has this size in bytes."""
    appends = read_appends(log)
    sizes = [append.found[0] if append.found else 0 for append in appends[1:]] + [size]
    for append, after in zip(appends, sizes, strict=False):  # without appends, `size` is left over
        if (end := min(append.end, after, size)) > append.start:
            yield append.start, end


def _appends(text: bytes) -> Iterator[Append]:
    append: Append | None = None
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        value = loads(line)
        if append is not None and value.keys() == {"left"}:
            append.left = _version(value["left"])
            continue
        if append is not None:
            yield append
        found = value["found"]
        append = Append(
            int(value["inode"]), None if found is None else _version(found), int(value["start"]), int(value["end"])
        )
    if append is not None:
        yield append


def _version(value: list[object]) -> Version:
    size, modified = value
    if type(size) is not int or type(modified) is not int:
        raise ValueError(f"{value} is no version")
    return [size, modified]


def _write(log: Path, value: dict[str, object], *, sync: bool) -> None:
    """Writes a line, or none of it. Raises OSError."""
    line = json.dumps(value).encode() + b"\n"
    with log.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            while line:  # a full disk can cut a write short
                line = line[file.write(line) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
