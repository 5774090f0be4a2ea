"""File locks: one process holds a lock, and the kernel releases it however that process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path


def local_time() -> str:
    """Returns the time for people on several machines: ISO 8601 with the offset from UTC."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def one_line(text: object) -> str:
    """Returns what another process wrote, fit for a message: one short line of printable characters."""
    words = "".join(character if character.isprintable() else " " for character in str(text)[:200])
    return " ".join(words.split())


class AlreadyLockedError(Exception):
    """Another process holds the lock. The message says which, if known."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`. Creates it if needed; the holder may remove it.

    Raises AlreadyLockedError, or OSError if it cannot be created or the file system has no locks.
    """
    try:
        descriptor = _acquired(path)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        yield
    finally:
        os.close(descriptor)


def _acquired(path: Path) -> int:
    while True:
        with ExitStack() as opened:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            opened.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace")
                raise AlreadyLockedError(one_line(holder) or "another process") from None
            # The last holder may have removed the file after it was opened here: this lock would protect nothing.
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                holder = f"process {os.getpid()} on {os.uname().nodename} since {local_time()}\n"
                os.write(descriptor, holder.encode())
                opened.pop_all()
                return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
