"""Images without their metadata: only pixels decide whether an image can be read, and how long that takes.

Pillow refuses images with broken or large metadata, and joins the EXIF segments of a JPEG in quadratic time.
"""

import re
import struct
import zlib
from collections.abc import Iterator

from vllm_annotate.errors import ImageFailure

SMALL_BYTES = 4 << 20  # metadata in a smaller file take little time
MOST_PIECES = 1_000_000  # segments, chunks or blocks of a file: walking through them takes about a second

PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
PNG_TEXTS = (b"iTXt", b"tEXt", b"zTXt")
PNG_TURNS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
JPEG = b"\xff\xd8"
JPEG_FILL = re.compile(rb"\xff+")
JPEG_TURNS = (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0")
JPEG_COLOURS = (b"JFIF\0", b"Adobe")  # decide what the numbers mean
WEBP_PIXELS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
WEBP_TURNS = (b"EXIF", b"XMP ")
WEBP_METADATA_FLAGS, WEBP_TURN_FLAGS = 0x2C, 0x0C  # ICC, EXIF and XMP; EXIF and XMP


def readings(data: bytes) -> Iterator[bytes]:
    """Yields the content of an image file until one can be decoded: as it is, with metadata that turn it, with none.

    As it is only if that takes little time, and not for a PNG, as Pillow reads its last metadata after decoding.
    Raises ImageFailure for a PNG whose pixels have a wrong checksum, and for more than MOST_PIECES pieces.
    """
    seen = None
    if not data.startswith(PNG) and (len(data) <= SMALL_BYTES or not data.startswith((JPEG, b"GIF8"))):
        yield (seen := data)
    for keep_turn in (True, False):
        bare = _bare(data, keep_turn=keep_turn)
        if bare != seen:
            yield bare
        seen = bare


def _bare(data: bytes, *, keep_turn: bool) -> bytes:
    if data.startswith(PNG):
        return _bare_png(data, keep_turn=keep_turn)
    if data.startswith(JPEG):
        return b"".join(_bare_jpeg(data, keep_turn=keep_turn))
    if data.startswith(b"GIF8"):
        return _bare_gif(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _bare_webp(data, keep_turn=keep_turn)
    return data if keep_turn else data.replace(b"Exif", b"none")  # libavif refuses some kinds of broken EXIF


def _counted() -> Iterator[int]:
    yield from range(MOST_PIECES)
    raise ImageFailure("unreadable", f"the file has more than {MOST_PIECES:,} pieces of metadata: remove them")


def _bare_png(data: bytes, *, keep_turn: bool) -> bytes:
    view, kept, at = memoryview(data), [memoryview(PNG)], len(PNG)
    for _ in _counted():
        length, kind = int.from_bytes(view[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if kind == b"IEND" or len(kind) < 4:
            break
        if end > len(data):
            if kind in PNG_PIXELS:
                return b"".join([*kept, view[at:]])  # truncated, as the decoder will say
            break
        turns = keep_turn and (kind == b"eXIf" or (kind in PNG_TEXTS and data.startswith(PNG_TURNS, at + 8)))
        if kind in PNG_PIXELS or turns:
            if zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end]):
                kept.append(view[at:end])
            elif kind[:1].isupper():  # critical, unlike tRNS and eXIf
                raise ImageFailure("unreadable", f"the checksum of chunk {kind.decode()} is wrong: restore the file")
        at = end
    if sum(map(len, kept)) == at and data.startswith(PNG_END, at):  # a copy would cost a tenth of the decoding
        return data
    return b"".join([*kept, PNG_END])


def _bare_jpeg(data: bytes, *, keep_turn: bool) -> Iterator[bytes]:
    yield JPEG
    at, wanted = len(JPEG), set(JPEG_TURNS if keep_turn else ())
    for _ in _counted():
        fill = JPEG_FILL.match(data, at)
        if fill is None or fill.end() + 3 > len(data):
            break
        start, marker = fill.end() - 1, data[fill.end()]
        end = fill.end() + 1 + int.from_bytes(data[start + 2 : start + 4])
        if marker == 0:  # no marker
            at = fill.end() + 1
            continue
        if marker in (0xDA, 0xD9):  # the pixels follow
            at = start
            break
        body = data[start + 4 : min(end, start + 40)]
        turns = [name for name in wanted if marker == 0xE1 and body.startswith(name)]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or turns or (body.startswith(JPEG_COLOURS) and end - start >= 16):
            yield data[start:end]
        wanted -= set(turns)  # the first only
        at = end
    yield data[at:]


def _bare_webp(data: bytes, *, keep_turn: bool) -> bytes:
    kept, at = [], 12
    for _ in _counted():
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        chunk = bytearray(data[at:end])
        if kind == b"VP8X" and len(chunk) > 8:
            chunk[8] &= ~WEBP_METADATA_FLAGS | (WEBP_TURN_FLAGS if keep_turn else 0)
        if kind in WEBP_PIXELS or (kind in WEBP_TURNS and keep_turn and end <= len(data)):
            kept.append(chunk)
        at = end
        if at >= len(data):
            break
    body = b"".join([b"WEBP", *kept])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _bare_gif(data: bytes) -> bytes:
    """Drops the extensions before the first image, except those that say which colour is transparent."""
    table = 3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0
    at = start = 13 + table
    kept = [data[:start]]
    for _ in _counted():
        if data[at : at + 1] != b"!":
            break
        block = at + 2
        while data[block : block + 1] not in (b"\0", b""):
            block += 1 + data[block]
        if data[at + 1 : at + 3] == b"\xf9\x04":
            kept.append(data[at : block + 1])
        at = block + 1
    return b"".join([*kept, data[at:]])
