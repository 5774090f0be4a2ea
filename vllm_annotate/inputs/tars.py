"""WebDataset tars, as img2dataset writes them: the members of one key are a row.

https://github.com/webdataset/webdataset

The key is a member's path up to the first dot of its name: `00012.jpg` is the image of key `00012`, `00012.txt` its
caption, and `00012.json` has its columns.
"""

import errno
import os
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vllm_annotate.storage.json_text import dumped, json_object, object_line, raw_members

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff", "jp2", "ppm"})
CAPTION, COLUMNS = "txt", "json"
HEADER_BYTES, MAGIC, MAGIC_AT = tarfile.BLOCKSIZE, b"ustar", slice(257, 262)
MOST_TEXT_BYTES = 1024 * 1024


class Place(NamedTuple):
    """Where the image of a row is in its tar."""

    offset: int  # bytes
    size: int
    header: int  # CRC-32 of the header before it


@dataclass
class Sample:
    """The members of a key."""

    image: str = ""  # its path in the tar
    place: Place | None = None
    texts: dict[str, bytes] = field(default_factory=dict)  # by ending
    dotted: str = ""  # an image whose name has further dots, which is no member that counts
    why: str = ""  # it cannot be used

    def refuse(self, why: str) -> None:
        """Takes note of its first fault."""
        self.why = self.why or why


@dataclass
class Tar:
    """The samples of a tar by key, in the order of their first members, and why its rest cannot be read."""

    samples: dict[str, Sample] = field(default_factory=dict)
    broken: str = ""


def is_tar(path: Path) -> bool:
    """Whether a file's name or its first header says tar."""
    if path.suffix.lower() == ".tar":
        return True
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        return header[MAGIC_AT] == MAGIC and bool(tarfile.TarInfo.frombuf(header, "utf-8", "replace"))
    except (OSError, tarfile.TarError):  # of the checksum: a caption may have these letters there
        return False


def read_tar(file: BinaryIO, is_stopped: Callable[[], bool] = lambda: False) -> Tar:
    """Reads all headers and texts, and no image. What is truncated or corrupt ends it, and what came before counts.

    Raises OSError of kind ECANCELED once `is_stopped`.
    """
    found, at = Tar(), -1
    size = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", errors="replace") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or memory would grow with the tar
                if is_stopped():
                    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
                if tar.offset <= at:  # the size in a header may be negative
                    raise tarfile.ReadError(f"a header with a wrong size at byte {at:,}")
                at = tar.offset
                _add(found, file, member, size)
            end = tar.offset
        found.broken = _after_the_last(file, end)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        found.broken = str(error)
    return found


def _after_the_last(file: BinaryIO, end: int) -> str:
    """Says what is wrong after the last member; tarfile takes a corrupt header for the end."""
    file.seek(end)
    if file.read(HEADER_BYTES) != bytes(HEADER_BYTES):
        return f"no header and no end mark at byte {end:,}"
    if any(any(block) for block in iter(lambda: file.read(MOST_TEXT_BYTES), b"")):
        return f"more after the end mark at byte {end:,}, as of tars that were joined"
    return ""


def _add(found: Tar, file: BinaryIO, member: tarfile.TarInfo, size: int) -> None:
    path = member.name.removeprefix("./")
    folder, name = posixpath.split(path)
    stem, _, kind = name.partition(".")
    kind = kind.lower()
    is_dotted = kind not in IMAGES and kind.rpartition(".")[2] in IMAGES
    if not stem or member.isdir() or not (is_dotted or kind in IMAGES | {CAPTION, COLUMNS}):
        return
    sample = found.samples.setdefault(posixpath.join(folder, stem), Sample())
    if is_dotted:
        sample.dotted = path
    elif not member.isreg() or member.issparse():
        sample.refuse(f"{path!r:.200} is a link, or no plain file")
    elif member.offset_data + member.size > size:
        sample.refuse(f"{path!r:.200} is cut off by the end of the tar")
    elif kind in IMAGES:
        if sample.place is not None:
            sample.refuse(f"it has two images, {sample.image!r:.200} and {path!r:.200}")
        else:
            sample.image, sample.place = path, _place(file, member)
    elif kind in sample.texts or member.size > MOST_TEXT_BYTES:
        sample.refuse(f"{path!r:.200} is there twice, or has over {MOST_TEXT_BYTES >> 20} MiB")
    else:
        file.seek(member.offset_data)
        sample.texts[kind] = file.read(member.size)


def _place(file: BinaryIO, member: tarfile.TarInfo) -> Place:
    file.seek(member.offset_data - HEADER_BYTES)
    return Place(member.offset_data, member.size, zlib.crc32(file.read(HEADER_BYTES)))


def rows_of(tar: Tar, name: str, caption_column: str) -> Iterator[tuple[str, bytes, Place | str]]:
    """Yields the image path of each row, its line of JSON, and the place of its image or why it has none.

    `name` is that of the tar, with which image paths begin. What cannot be read of a broken tar is one more row.
    """
    has_captions = any(CAPTION in sample.texts for sample in tar.samples.values())
    for key, sample in tar.samples.items():
        image_path = f"{name}/{sample.image or key}"
        columns, why = _columns(sample, caption_column, has_captions=has_captions)
        place = why or sample.place or _without_image(sample)
        yield image_path, object_line(dumped({"image_path": image_path}), *columns), place
    if tar.broken:
        why = f"the tar is truncated or corrupt after {len(tar.samples):,} rows ({tar.broken:.200}): restore it"
        yield name, object_line(dumped({"image_path": name})), why


def _without_image(sample: Sample) -> str:
    if not sample.dotted:
        return "its key has no image"
    return f"its only image is {sample.dotted!r:.200}, but a key ends at the first dot of a name: rename it"


def _columns(sample: Sample, caption_column: str, *, has_captions: bool) -> tuple[list[str | bytes], str]:
    """The members of a row as they are written, and why it cannot be used."""
    text = sample.texts.get(COLUMNS, b"{}").decode("utf-8-sig", "replace")
    values = json_object(text)
    if values is None:
        return [], sample.why or "its .json is no JSON object"
    left_out = {"image_path"}
    caption: list[str | bytes] = []
    if caption_column and has_captions and values.get(caption_column) is None:
        left_out.add(caption_column)
        written = sample.texts.get(CAPTION)
        caption = [dumped({caption_column: written and written.decode("utf-8-sig", "replace").strip()})]
    members = raw_members(text).items()
    return [*(f"{written}:{value}" for name, (written, value) in members if name not in left_out), *caption], sample.why
