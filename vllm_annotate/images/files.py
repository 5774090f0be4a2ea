"""Reads image files, and only those inside the image root, whatever paths and links say."""

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from vllm_annotate.errors import ImageFailure, MachineFault
from vllm_annotate.images.hints import similar_path
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.shortage import is_shortage

MAX_FILE_BYTES = 256 * 1024 * 1024
FOLDERS, FOLDER_SECONDS = 64, 2  # cached, and for how long: folders may be renamed or replaced

# Others are of the disk or the network, and may be gone at the next run.
FILE_ERRORS = {
    errno.ENOENT: "missing", errno.ENOTDIR: "missing", errno.ENAMETOOLONG: "missing", errno.ELOOP: "unreadable",
    errno.EACCES: "unreadable", errno.EPERM: "unreadable", errno.ENXIO: "unreadable", errno.EISDIR: "unreadable",
}  # fmt: skip


def read_image(image_root: ImageRoot, image_path: str) -> bytes:
    """Returns the bytes of an image: 1 to MAX_FILE_BYTES, from inside the root.

    Raises ImageFailure; MachineFault if no image of the root can be read; OSError or MemoryError if this machine is
    short of memory or open files.
    """
    try:
        data = _content(image_root, image_path)
    except ImageFailure as failure:
        if failure.kind != "missing":
            raise
        check_root(image_root)
        if not (similar := similar_path(image_root, image_path)):
            raise
        raise ImageFailure("missing", f"{failure.message}; {similar!r:.300} exists: correct the path") from None
    except OSError as error:
        if is_shortage(error) or isinstance(error, MachineFault):
            raise
        check_root(image_root)
        cause = error.strerror or str(error) or type(error).__name__
        message = f"{cause}: {image_path!r:.300} under {image_root}; check the disk or the network, and run again"
        raise ImageFailure("unreadable", message) from None
    if not data:
        raise ImageFailure("unreadable", "the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise ImageFailure("too_large", f"the file is over {MAX_FILE_BYTES >> 20} MiB")
    return data


def check_root(image_root: ImageRoot) -> None:
    """Raises MachineFault if the image root cannot be read or is empty, as when it is no longer mounted."""
    try:
        if isinstance(image_root, Path):
            with os.scandir(image_root) as entries:
                is_empty = next(entries, None) is None
        else:
            is_empty = image_root.is_empty()
    except OSError as error:
        if is_shortage(error):
            raise
        cause = f"cannot be read ({error.strerror or error})"
    else:
        if not is_empty:
            return
        cause = "is empty"
    remedy = "check whether it is mounted" if isinstance(image_root, Path) else "check the URL, the store and the key"
    raise MachineFault(f"image root {image_root} {cause}: {remedy}, and run again; all answers are saved")


def _content(image_root: ImageRoot, image_path: str) -> bytes:
    if not isinstance(image_root, Path):
        return image_root.read(image_path, MAX_FILE_BYTES + 1)
    with opened_inside(image_root, image_path) as file:
        return _read(file)


def _read(file: int) -> bytes:
    """Returns at most MAX_FILE_BYTES + 1 bytes of a file.

    Not through a file object: each of its system calls releases the GIL and has to wait for it again.
    """
    size = min(os.fstat(file).st_size, MAX_FILE_BYTES + 1)
    data = os.read(file, size)
    while len(data) < size and (more := os.read(file, size - len(data))):  # a read may return less
        data += more
    return data


@contextmanager
def opened_inside(image_root: Path, image_path: str) -> Iterator[int]:
    """Opens the file of an image; yields its descriptor.

    Raises ImageFailure unless it is a regular file inside `image_root` after following links. Other errors of the
    disk or the machine are raised as OSError.
    """
    root = _real(image_root)
    try:
        if (file := _open_in_folder(root, image_path)) is None:
            file = _open_inside(root, image_path)
    except OSError as error:
        if is_shortage(error):
            raise
        _check_inside(root, os.path.realpath(image_root / image_path))
        if error.errno not in FILE_ERRORS:
            raise
        message = f"{error.strerror}: {image_path!r:.300} under {image_root}"
        raise ImageFailure(FILE_ERRORS[error.errno], message) from None
    except ValueError as error:  # a null byte or a surrogate
        raise ImageFailure("missing", f"{image_path!r:.300} is not a valid file name: {error}") from None
    try:
        yield file
    finally:
        os.close(file)


@lru_cache(maxsize=8)
def _real(image_root: Path) -> str:
    return os.path.realpath(image_root)


def _open_inside(root: str, image_path: str) -> int:
    path = os.path.join(root, image_path)  # noqa: PTH118 - "/…" replaces the root
    if sys.platform != "linux":
        real = os.path.realpath(path)
        _check_inside(root, real)
        _check_regular(os.lstat(real), image_path)
        return os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    # O_PATH does not open the target: it is checked before a FIFO or a device could notice.
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        real = os.readlink(f"/proc/self/fd/{found}")  # noqa: PTH115 - a Path costs as much as the call
        _check_inside(root, real)
        _check_regular(os.fstat(found), image_path)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)


def _check_inside(root: str, real: str) -> None:
    if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
        raise ImageFailure("outside_root", f"{real} is outside the image root {root}")


def _check_regular(found: os.stat_result, image_path: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ImageFailure("unreadable", f"{image_path!r:.300} is not a regular file")


class Folder:
    """An open folder. Opening a plain file relative to it takes five system calls instead of eight."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.real = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open_in_folder(root: str, image_path: str) -> int | None:
    """Opens a plain file; returns None for anything else, which `_open_inside` checks."""
    if sys.platform != "linux":
        return None
    path, name = os.path.split(os.path.join(root, image_path))  # noqa: PTH118
    try:
        folder = _folder(root, path, int(time.monotonic()) // FOLDER_SECONDS)
        found = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            return None
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=folder.descriptor)
    except (OSError, ImageFailure):
        return None


@lru_cache(maxsize=FOLDERS)
def _folder(root: str, path: str, _period: int) -> Folder:
    folder = Folder(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    _check_inside(root, folder.real)
    return folder


def close_folders() -> None:
    """Closes the cached folders, as an open one cannot be unmounted, and forgets where links to image roots led."""
    _folder.cache_clear()
    _real.cache_clear()
