"""Copies of objects on this machine."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.callbacks import Callback

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.atomic import replacing, replacing_path
from vllm_annotate.storage.disk_errors import disk_is_full, explained
from vllm_annotate.storage.locations import file_system, identity_of, name_of, reaching, unreachable, version_of
from vllm_annotate.storage.lock import AlreadyLockedError, locked

POLL_SECONDS = 0.2
BLOCK_BYTES = 1 << 16  # between two looks at whether to stop


def local_copy(where: Path | str, folder: Path, stopped: threading.Event) -> Path:
    """Returns a local path as it is, and for a URL an up-to-date copy in `folder`.

    Raises UsageError if the URL does not exist or cannot be reached.
    """
    if isinstance(where, Path):
        return where.expanduser()
    fs, path = file_system(where)
    copy = folder / f"{identity_of(fs, where)}-{name_of(where)[-60:]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with reaching(where), _exclusive(copy, stopped):
            seen = copy.with_name(copy.name + ".version")
            version = version_of(fs.info(path))
            if not (copy.exists() and seen.exists() and seen.read_text() == version):
                download(fs, path, copy, stopped)
                with replacing(seen) as file:
                    file.write(version.encode())
    except FileNotFoundError:
        raise UsageError(
            f"input {where!r} does not exist: give a .jsonl (also .gz, .zst), .parquet or .tar file"
        ) from None
    except OSError as error:
        if disk_is_full(error):
            raise UsageError(explained(error, copy)) from None
        raise unreachable(where, error) from None
    return copy


def copied_version(copy: Path) -> str:
    """The version of the object that a copy is of."""
    return copy.with_name(f"{copy.name}.version").read_text()


@contextmanager
def _exclusive(copy: Path, stopped: threading.Event) -> Iterator[None]:
    """Waits for other runs on this machine that download the same file."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(copy.with_name(copy.name + ".lock")))
                break
            except AlreadyLockedError:
                if stopped.wait(POLL_SECONDS):
                    raise _stopped() from None
        yield


def download(fs: AbstractFileSystem, path: str, target: Path, stopped: threading.Event) -> None:
    """Replaces `target` with an object once it is complete and synced. Raises OSError when `stopped` is set."""
    blocks = {"chunk_size": BLOCK_BYTES} if "http" in fs.protocol else {}  # its own of 5 MiB may take a minute
    with replacing_path(target) as unfinished:
        fs.get_file(path, str(unfinished), callback=_UnlessStopped(stopped), **blocks)


class _UnlessStopped(Callback):  # type: ignore[misc]
    """Stops a transfer between two blocks."""

    def __init__(self, stopped: threading.Event) -> None:
        super().__init__()
        self._stopped = stopped

    def relative_update(self, inc: int = 1) -> None:
        if self._stopped.is_set():
            raise _stopped()
        super().relative_update(inc)


def _stopped() -> OSError:
    return OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
