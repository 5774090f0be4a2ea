"""The images of a tar, here or in an object store, read by their places."""

import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from vllm_annotate.errors import ImageFailure, InputFault
from vllm_annotate.inputs.tars import HEADER_BYTES, Place, Tar, read_tar
from vllm_annotate.storage.file_states import version_at
from vllm_annotate.storage.locations import file_system, reaching

HEADERS_AT_ONCE = 4 * 1024 * 1024  # bytes of an object that are read at once while its headers are looked for


class LocalTar:
    """A tar on this machine."""

    is_remote = False
    _descriptor = -1

    def __init__(self, path: Path) -> None:
        self.where = path
        self.version = version_at(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._state = os.fstat(self._descriptor)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def __str__(self) -> str:
        return str(self.where)

    def headers(self, is_stopped: Callable[[], bool], ending: str = "") -> Tar:
        """Reads all but the images."""
        with open(self._descriptor, "rb", closefd=False) as file:
            return read_tar(file, is_stopped, ending)

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` to `end`; fewer if the file ends before, none if it was changed."""
        data = os.pread(self._descriptor, end - start, start)
        while start + len(data) < end and (
            more := os.pread(self._descriptor, end - start - len(data), start + len(data))
        ):
            data += more  # a read may return less
        now, then = os.fstat(self._descriptor), self._state
        return data if (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns) else b""

    def is_gone(self) -> bool:
        """Whether its name is gone."""
        return not self.where.exists()


class RemoteTar:
    """A tar in an object store."""

    is_remote = True

    def __init__(self, url: str) -> None:
        self.where = url
        self.version = version_at(url)
        self._fs, self._path = file_system(url)

    def __str__(self) -> str:
        return self.where

    def headers(self, is_stopped: Callable[[], bool], ending: str = "") -> Tar:
        """Reads all but the images, or these too where they are small: few large requests are faster than many."""
        options = {"block_size": HEADERS_AT_ONCE, "cache_type": "readahead"}
        with reaching(self.where), self._fs.open(self._path, "rb", **options) as file:
            return read_tar(file, is_stopped, ending)

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` to `end`."""
        with reaching(self.where):
            return bytes(self._fs.cat_file(self._path, start=start, end=end))

    def is_gone(self) -> bool:
        """Whether the object is gone."""
        with reaching(self.where):
            return not self._fs.exists(self._path)


class TarImages:
    """The images of a tar by image path."""

    def __init__(
        self, tar: LocalTar | RemoteTar, places: Mapping[str, Place | str], passed_over: Sequence[str] = ()
    ) -> None:
        """Images at these places; a text says why there is none. Images with the endings `passed_over` are no rows."""
        self.passed_over = passed_over
        self.where, self.version, self.is_remote = tar.where, tar.version, tar.is_remote
        self.is_numbered = False
        self._tar = tar
        self._places = places

    def __str__(self) -> str:
        return str(self._tar)

    def read(self, image_path: str, max_bytes: int) -> bytes:
        """Returns the first bytes of an image. Raises ImageFailure, OSError; InputFault if the tar was replaced."""
        place = self._places.get(image_path, "")
        if isinstance(place, str):
            kind, why = ("unreadable", place) if place else ("missing", "no such member")
            raise ImageFailure(kind, f"{image_path!r:.300} in {self}: {why}")
        start, end = place.offset - HEADER_BYTES, place.offset + min(place.size, max_bytes)
        data = self._tar.read(start, end)
        # Another tar of this name would give images of other rows.
        if len(data) != end - start or zlib.crc32(data[:HEADER_BYTES]) != place.header:
            raise InputFault(
                f"{self} was replaced while it was read, or its server does not give parts of it: run again"
            )
        return data[HEADER_BYTES:]

    def is_empty(self) -> bool:
        """Whether the tar is gone. Raises OSError."""
        return self._tar.is_gone()

    def in_turn(self, image_paths: Sequence[str]) -> Iterable[int]:
        """By their places in the tar."""
        places = [self._places.get(path) for path in image_paths]
        return sorted(range(len(places)), key=lambda at: place.offset if isinstance(place := places[at], Place) else 0)

    def has(self, image_path: str) -> bool:
        """Whether the tar has this image."""
        return isinstance(self._places.get(image_path), Place)
