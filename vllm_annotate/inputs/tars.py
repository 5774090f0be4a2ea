"""WebDataset tars, as img2dataset writes them: the members of one key are a row.

https://github.com/webdataset/webdataset

The key is a member's path up to the first dot of its name: `00012.jpg` is the image of key `00012`, `00012.txt` its
caption, and `00012.json` has its columns. Images with further dots, as `00012.seg.png`, are passed over, unless one is
named: `seg.png`.
"""

import errno
import os
import posixpath
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vllm_annotate.storage.json_text import dumped, json_object, object_line, raw_members

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff", "jp2", "ppm"})
CAPTION, COLUMNS = "txt", "json"
NOT_UTF_8 = re.compile("[\udc80-\udcff]")  # bytes of names, which stay distinct if they are written as %FF
HEADER_BYTES, MAGIC, MAGIC_AT = tarfile.BLOCKSIZE, b"ustar", slice(257, 262)
MOST_TEXT_BYTES = 1024 * 1024
ABOUT_THE_TAR = frozenset({"readme", "license", "licence", "notice", "citation"})  # texts, which are no captions


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
    dotted: list[str] = field(default_factory=list)  # images whose names have further dots, which do not count
    why: str = ""  # it cannot be used

    def refuse(self, why: str) -> None:
        """Takes note of its first fault."""
        self.why = self.why or why


@dataclass
class Tar:
    """The samples of a tar by key, in the order of their first members, and why its rest cannot be read."""

    samples: dict[str, Sample] = field(default_factory=dict)
    broken: str = ""
    last: str = ""  # the key of the last member


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


def ending_of_images(image_column: str) -> str:
    """The ending of the members with the images, such as `input.jpg`, if a setting names one; empty if it does not."""
    ending = image_column.lower().removeprefix(".")
    return ending if ending.rpartition(".")[2] in IMAGES else ""


def read_tar(file: BinaryIO, is_stopped: Callable[[], bool] = lambda: False, ending: str = "") -> Tar:
    """Reads all headers and texts, and no image. What is truncated or corrupt ends it, and what came before counts.

    Images are the members with this ending, by default any whose names have no further dots. Raises OSError of kind
    ECANCELED once `is_stopped`.
    """
    found, at = Tar(), -1
    size = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or memory would grow with the tar
                if is_stopped():
                    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
                if tar.offset <= at:  # the size in a header may be negative
                    raise tarfile.ReadError(f"a header with a wrong size at byte {at:,}")
                at = tar.offset
                _add(found, file, member, size, ending)
            end = tar.offset
        found.broken = _after_the_last(file, end)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        found.broken = str(error)
    if found.broken:
        _refuse_incomplete(found)
    return found


def _refuse_incomplete(tar: Tar) -> None:
    """Refuses what may be lacking texts that are behind the end: it would be annotated without a caption.

    These are samples without a kind of text that others have, and the last one, unless another has the same kinds.
    """
    kinds = Counter(frozenset(sample.texts) for sample in tar.samples.values())
    all_kinds = frozenset[str]().union(*kinds)
    for key, sample in tar.samples.items():
        if all_kinds - sample.texts.keys() or (key == tar.last and kinds[frozenset(sample.texts)] == 1):
            sample.refuse("the tar breaks off, and more of its members may come after that: restore the tar")


def _after_the_last(file: BinaryIO, end: int) -> str:
    """Says what is wrong after the last member; tarfile takes a corrupt header for the end."""
    file.seek(end)
    if file.read(HEADER_BYTES) != bytes(HEADER_BYTES):
        return f"no header and no end mark at byte {end:,}"
    if any(any(block) for block in iter(lambda: file.read(MOST_TEXT_BYTES), b"")):
        return f"more after the end mark at byte {end:,}, as of tars that were joined"
    return ""


def _add(found: Tar, file: BinaryIO, member: tarfile.TarInfo, size: int, ending: str) -> None:
    path = NOT_UTF_8.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", member.name).removeprefix("./")
    folder, name = posixpath.split(path)
    stem, _, kind = name.partition(".")
    kind = kind.lower()
    is_image = kind == ending if ending else kind in IMAGES
    is_dotted = not (is_image or ending) and kind.rpartition(".")[2] in IMAGES
    if not stem or member.isdir() or not (is_image or is_dotted or kind in (CAPTION, COLUMNS)):
        return
    if kind == CAPTION and stem.lower() in ABOUT_THE_TAR:
        return
    found.last = posixpath.join(folder, stem)
    sample = found.samples.setdefault(found.last, Sample())
    if is_dotted:
        sample.dotted.append(path)
    elif not member.isreg() or member.issparse():
        sample.refuse(f"{path!r:.200} is a link, or no plain file")
    elif member.offset_data + member.size > size:
        sample.refuse(f"{path!r:.200} is cut off by the end of the tar")
    elif is_image:
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
    has_captions = any(CAPTION in sample.texts for sample in tar.samples.values() if sample.image)
    for key, sample in tar.samples.items():
        if sample.dotted and not sample.image:
            for path in sample.dotted:
                image_path = f"{name}/{path}"
                yield image_path, object_line(dumped({"image_path": image_path})), _without_key(path)
            continue
        image_path = f"{name}/{sample.image or key}"
        columns, why = _columns(sample, caption_column, has_captions=has_captions)
        place = why or sample.place or "its key has no image"
        yield image_path, object_line(dumped({"image_path": image_path}), *columns), place
    if tar.broken:
        why = f"the tar is truncated or corrupt after {len(tar.samples):,} rows ({tar.broken:.200}): restore it"
        yield name, object_line(dumped({"image_path": name})), why


def _without_key(path: str) -> str:
    kind = posixpath.basename(path).partition(".")[2].lower()
    return f"a key ends at the first dot of a name: rename it, or set --image-column {kind} if all images end like it"


def passed_over(tar: Tar) -> list[str]:
    """The endings of images that are passed over beside the image of their key."""
    paths = (path for sample in tar.samples.values() if sample.image for path in sample.dotted)
    return sorted({posixpath.basename(path).partition(".")[2].lower() for path in paths})


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
