"""Where the images of a run are: a folder, a folder of an object store, or a file with images inside."""

import errno
import math
import posixpath
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from vllm_annotate.errors import ImageFailure, MachineFault
from vllm_annotate.storage.locations import OF_THE_OBJECT, error_code, file_system, reaching

EMPTY_SECONDS = 2


class ImageReader(Protocol):
    """Images that are not files of this machine. Several threads read at once."""

    is_remote: bool  # a read mostly waits for the network

    def read(self, image_path: str, max_bytes: int) -> bytes:
        """Returns the first `max_bytes` bytes of an image. Raises ImageFailure, and OSError as reading a file does."""

    def in_turn(self, image_paths: Sequence[str]) -> Iterable[int]:
        """Returns the numbers of the images in the order in which they are read fastest."""

    def is_empty(self) -> bool:
        """Whether nothing can be read any more. Raises OSError."""

    def has(self, image_path: str) -> bool:
        """Whether the image exists. Raises OSError."""


ImageRoot = Path | ImageReader


class RemoteFolder:
    """An image root in an object store. Stores have no links, so the path alone shows what is outside it."""

    is_remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, path = file_system(self.url)
        self._path = path.rstrip("/")
        self._found = -math.inf  # when it was last seen not to be empty

    def __str__(self) -> str:
        return self.url

    def read(self, image_path: str, max_bytes: int) -> bytes:
        """Returns the first `max_bytes` bytes of an image.

        Raises ImageFailure of kind missing, outside_root or unreadable; MachineFault if the store refuses the key, and
        OSError for other faults of the store or of this object.
        """
        path = self._inside(image_path)
        with reaching(self.url):
            try:
                data: bytes = self._fs.cat_file(path, start=0, end=max_bytes)
            except (FileNotFoundError, UnicodeError):  # UnicodeError: a name with a surrogate
                raise ImageFailure("missing", f"no object {image_path!r:.300} under {self.url}") from None
            except PermissionError as error:
                if error_code(error) not in OF_THE_OBJECT:
                    raise MachineFault(
                        f"image root {self.url} refuses the key ({error}): check the credentials and the clock, and "
                        "run again; all answers are saved"
                    ) from None
                message = f"{error}: {image_path!r:.300} (or it does not exist, and the key has no permission to list)"
                raise ImageFailure("unreadable", message) from None
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise ImageFailure("missing", f"{image_path!r:.300} is too long for an object's name") from None
                if error.errno == errno.EINVAL and not self._fs.info(path)["size"]:  # an empty object has no ranges
                    return b""
                raise
        return data

    def in_turn(self, image_paths: Sequence[str]) -> Iterable[int]:
        """All are equally far."""
        return range(len(image_paths))

    def is_empty(self) -> bool:
        """Whether there is nothing under the URL, as of EMPTY_SECONDS ago. Raises OSError if the store is at fault."""
        if time.monotonic() - self._found < EMPTY_SECONDS:
            return False
        with reaching(self.url):
            try:
                self._fs.info(self._path)
            except FileNotFoundError:
                return True
            except PermissionError as error:  # this key may read objects, but not list them
                if error_code(error) not in OF_THE_OBJECT:
                    raise
        self._found = time.monotonic()
        return False

    def has(self, image_path: str) -> bool:
        """Whether the object exists. Raises OSError if the store is at fault."""
        with reaching(self.url):
            try:
                return bool(self._fs.exists(self._inside(image_path)))
            except ImageFailure:
                return False

    def _inside(self, image_path: str) -> str:
        inside = posixpath.normpath(image_path)
        if inside.startswith("/") or inside.split("/")[0] in ("..", "."):
            raise ImageFailure("outside_root", f"{image_path!r:.300} is outside the image root {self.url}")
        return f"{self._path}/{inside}"
