"""A JPEG without its metadata, cut from its segments: nothing is decoded, and every pixel stays as it is."""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from PIL import Image

from vllm_annotate.images.upright import ORIENTATION_TAG, UPRIGHT

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, with Huffman coding
TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantization, restart interval
METADATA = (*range(0xE0, 0xF0), 0xFE)  # applications and comments
COLOURS = {  # (marker, how it begins) → lengths of a segment that decides colours, and holds nothing else
    (0xE0, b"JFIF"): range(16, 17),
    (0xE2, b"ICC_PROFILE\0"): range(16, 1 << 16),
    (0xEE, b"Adobe"): range(14, 15),
}
EXIF, XMP, XMP_TURN = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"tiff:Orientation"

# In coded pixels, FF is data before 00, part of a restart marker before D0 to D7, and filling before FF.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
MOST_SEGMENTS = 1_000  # a progressive JPEG has about 30; each MiB of metadata adds 16
MOST_BYTES_PER_PIXEL = 8  # white noise at quality 100 takes 4
SMALLEST_LIMIT = 1 << 16  # tables take room too


class _NotPlainError(Exception):
    """The file is torn, unusual or turned: the decoder judges it."""


@dataclass(frozen=True)
class PlainJpeg:
    """An upright JPEG without metadata."""

    content: bytes
    width: int  # pixels
    height: int


@dataclass
class _Header:
    """What stands before the coded pixels."""

    width: int = 0
    height: int = 0
    end: int = 0  # where the first scan begins
    exif: bytes = b""
    xmp_turns: bool = False
    metadata: list[tuple[int, int]] = field(default_factory=list)  # start and end of each segment


def plain_jpeg(data: bytes, wanted: Callable[[int, int], bool]) -> PlainJpeg | None:
    """Returns an upright 8-bit RGB or grey JPEG without its metadata, if `wanted` accepts its width and height.

    Returns None for everything else and for any doubt: a file without an end, a segment beyond the end, metadata that
    may turn the image. Damage among the coded pixels is not noticed.
    """
    if not data.startswith(bytes((0xFF, SOI))):
        return None
    try:
        header = _header(data)
        if not _is_upright(header) or not wanted(header.width, header.height):
            return None
        left_out = [*header.metadata, *_left_out_of_scans(data, header)]
    except (_NotPlainError, struct.error):  # struct: the file ends within a segment
        return None
    return PlainJpeg(_without(data, left_out), header.width, header.height)


def _header(data: bytes) -> _Header:
    header, at = _Header(), 2
    for _ in range(MOST_SEGMENTS):
        marker, end = _segment(data, at)
        if marker in METADATA:
            _look_at_metadata(header, data, marker, at, end)
        elif marker in FRAMES and not header.width:
            header.width, header.height = _frame_size(data, at)
        elif marker == SOS and header.width:
            header.end = at
            return header
        elif marker not in TABLES:
            break
        at = end
    raise _NotPlainError


def _segment(data: bytes, at: int) -> tuple[int, int]:
    """Returns the marker and the end of the segment at `at`."""
    start, marker, length = struct.unpack_from(">BBH", data, at)
    end = at + 2 + length
    if start != 0xFF or length < 2 or end > len(data):
        raise _NotPlainError
    return marker, end


def _frame_size(data: bytes, at: int) -> tuple[int, int]:
    length, bits, height, width, components = struct.unpack_from(">HBHHB", data, at + 2)
    # A height of 0 stands for a DNL segment after the pixels, which libjpeg does not read.
    if bits != 8 or components not in (1, 3) or length != 8 + 3 * components or not width or not height:
        raise _NotPlainError
    return width, height


def _look_at_metadata(header: _Header, data: bytes, marker: int, at: int, end: int) -> None:
    """Notes a segment that is left out, and what may turn the image."""
    body = at + 4
    for (application, start), lengths in COLOURS.items():
        if marker == application and data.startswith(start, body, end):
            if end - at - 2 not in lengths:
                raise _NotPlainError
            return
    header.metadata.append((at, end))
    if marker == 0xE1 and data.startswith(EXIF, body, end):
        if header.exif:  # whether they belong together depends on the reader
            raise _NotPlainError
        header.exif = data[body:end]
    elif marker == 0xE1 and data.startswith(XMP, body, end):
        header.xmp_turns |= data.find(XMP_TURN, body, end) >= 0


def _is_upright(header: _Header) -> bool:
    """Whether nothing can turn the image, as Pillow reads it: XMP counts without an orientation in EXIF."""
    if not header.exif:
        return not header.xmp_turns
    tags = Image.Exif()
    try:
        tags.load(header.exif)
        return tags[ORIENTATION_TAG] not in UPRIGHT if ORIENTATION_TAG in tags else not header.xmp_turns
    except Exception:  # broken EXIF: nobody knows what another reader makes of it
        return False


def _left_out_of_scans(data: bytes, header: _Header) -> Iterator[tuple[int, int]]:
    """Yields start and end of metadata between the scans, and of everything after the image."""
    at = header.end
    limit = at + max(SMALLEST_LIMIT, MOST_BYTES_PER_PIXEL * header.width * header.height)
    for _ in range(MOST_SEGMENTS):
        if data[at : at + 2] == bytes((0xFF, EOI)):
            yield at + 2, len(data)
            return
        marker, end = _segment(data, at)
        if marker in METADATA:
            yield at, end
        elif marker == SOS:
            found = MARKER.search(data, end, limit)
            if found is None:
                break
            end = found.start()
        elif marker not in TABLES:
            break
        at = end
    raise _NotPlainError


def _without(data: bytes, left_out: list[tuple[int, int]]) -> bytes:
    if left_out == [(len(data), len(data))]:
        return data
    view, kept, at = memoryview(data), [], 0
    for start, end in left_out:
        kept.append(view[at:start])
        at = end
    return b"".join(kept)
