"""Metadata that are broken, large or both: only pixels decide whether an image can be read."""

import io
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.metadata import PNG, readings
from vllm_annotate.images.prepare import PreparedImage, prepare, thumbnail
from vllm_annotate.recipe.image_budget import ImageBudget

BUDGET = ImageBudget(min_pixels=128 * 784, max_pixels=1280 * 784)
TURNED = Image.Exif()
TURNED[274] = 6


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((200, 150)).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG, with the right checksum or another."""
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def segment(number: int, data: bytes) -> bytes:
    """An application segment of a JPEG."""
    return b"\xff" + bytes([0xE0 + number]) + struct.pack(">H", len(data) + 2) + data


BOMB = zlib.compress(b"a" * 3_000_000)
PNG_FILE, JPEG_FILE, GIF_FILE = encoded("PNG"), encoded("JPEG"), encoded("GIF")
WEBP_FILE = encoded("WEBP", exif=TURNED.tobytes(), xmp=b"<x/>", icc_profile=b"p" * 200)
HEAD, END = 33, len(PNG_FILE) - 12  # of the PNG: after IHDR, before IEND
GIF_HEAD = 13 + (3 << (GIF_FILE[10] & 7) + 1)
CHUNKS = {
    "a text that is a bomb": chunk(b"zTXt", b"k\0\0" + BOMB),
    "an international text that is a bomb": chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
    "much text": b"".join(chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(b"a" * 1_000_000)) for n in range(70)),
    "a profile that is a bomb": chunk(b"iCCP", b"k\0\0" + BOMB),
    "a wrong checksum": chunk(b"tEXt", b"k\0v", 1),
    "transparency with a wrong checksum": chunk(b"tRNS", b"\0\1\0\1\0\1", 1),
    "EXIF with a wrong checksum": chunk(b"eXIf", b"junk", 1),
    "XMP that is a bomb": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "a resolution that is cut off": chunk(b"pHYs", b"\0\0"),
    "no gamma": chunk(b"gAMA", b""),
    "an animation that is cut off": chunk(b"acTL", b"\0"),
    "a chunk without a name": chunk(b"a\0cd", b"x"),
}
SEGMENTS = {
    "a profile that is cut off": segment(2, b"ICC_PROFILE\0"),
    "a JFIF that is cut off": segment(0, b"JFIF\0"),
    "an Adobe that is cut off": segment(14, b"Adobe"),
    "broken EXIF": segment(1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "an index of pictures that is cut off": segment(2, b"MPF\0II*\0\x08\0\0\0\1\0"),
    "broken Photoshop data": segment(13, b"Photoshop 3.0\x008BIM\x04"),
    "XMP that is no XML": segment(1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
}
EXTENSIONS = {
    "a comment": b"\x21\xfe\x05hello\0",
    "an application that is cut off": b"\x21\xff\x0bNETSCAPE2.0\x01\x01\0",
    "a control that is cut off": b"\x21\xf9\x01\x00\0",
}


def broken() -> Iterator[tuple[str, bytes, bytes]]:
    """Name, file with broken metadata, the same file without."""
    for name, data in CHUNKS.items():
        yield f"PNG: {name}", PNG_FILE[:HEAD] + data + PNG_FILE[HEAD:], PNG_FILE
        yield f"PNG: {name} at the end", PNG_FILE[:END] + data + PNG_FILE[END:], PNG_FILE
    yield "PNG: no end", PNG_FILE[:END], PNG_FILE
    yield "PNG: a text that is cut off", PNG_FILE[:END] + chunk(b"tEXt", b"k\0" + b"v" * 99)[:50], PNG_FILE
    for name, data in SEGMENTS.items():
        yield f"JPEG: {name}", JPEG_FILE[:2] + data + JPEG_FILE[2:], JPEG_FILE
        yield f"JPEG: {name} after JFIF", JPEG_FILE[:20] + data + JPEG_FILE[20:], JPEG_FILE
    for name, data in EXTENSIONS.items():
        yield f"GIF: {name}", GIF_FILE[:GIF_HEAD] + data + GIF_FILE[GIF_HEAD:], GIF_FILE
    exif = WEBP_FILE.index(b"EXIF")
    yield "WebP: EXIF beyond the end", WEBP_FILE[: exif + 4] + b"\xff\xff\0\0" + WEBP_FILE[exif + 8 :], encoded("WEBP")
    yield "WebP: EXIF that is cut off", WEBP_FILE[: exif + 12], encoded("WEBP")


@pytest.mark.parametrize(("file", "clean"), [pytest.param(*rest, id=name) for name, *rest in broken()])
def test_broken_metadata_change_nothing_of_an_image(tmp_path: Path, file: bytes, clean: bytes) -> None:
    (tmp_path / "broken").write_bytes(file)
    (tmp_path / "clean").write_bytes(clean)
    prepared, expected = (prepare(tmp_path, name, BUDGET) for name in ("broken", "clean"))
    assert (prepared.width, prepared.height) == (200, 150)
    assert pixels(prepared) == pixels(expected)
    assert thumbnail(tmp_path, "broken", 100)[1] == (100, 75)


def pixels(prepared: PreparedImage) -> bytes:
    return Image.open(io.BytesIO(prepared.content)).tobytes()


@pytest.mark.parametrize(
    "file",
    [
        (whole := encoded("JPEG", exif=TURNED))[:2] + segment(2, b"ICC_PROFILE\0") + whole[2:],
        WEBP_FILE[:-6],
        (whole := encoded("PNG", exif=TURNED))[:HEAD] + CHUNKS["a text that is a bomb"] + whole[HEAD:],
    ],
    ids=["JPEG", "WebP", "PNG"],
)
def test_an_image_is_turned_although_other_metadata_are_broken(tmp_path: Path, file: bytes) -> None:
    (tmp_path / "a").write_bytes(file)
    prepared = prepare(tmp_path, "a", BUDGET)
    assert (prepared.width, prepared.height) == (150, 200)


def test_pixels_of_a_png_that_are_damaged_or_cut_off_are_refused(tmp_path: Path) -> None:
    at = PNG_FILE.index(b"IDAT")
    length = int.from_bytes(PNG_FILE[at - 4 : at])
    for place, said in {
        at + 4 + length: "the checksum of chunk IDAT is wrong", at + 4 + length // 2: "the checksum of chunk IDAT",
        len(PNG) + 21: "the checksum of chunk IHDR",
    }.items():  # fmt: skip
        damaged = bytearray(PNG_FILE)
        damaged[place] ^= 1
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(ImageFailure, match=said):
            prepare(tmp_path, "a.png", BUDGET)
    for size in (at + 4 + length // 2, at + 4, at - 4):
        (tmp_path / "a.png").write_bytes(PNG_FILE[:size])
        with pytest.raises(ImageFailure, match="cannot be decoded"):
            prepare(tmp_path, "a.png", BUDGET)


LARGE = 100 << 20
LONG = b"x" * 65_000


@pytest.mark.parametrize(
    "file",
    [
        JPEG_FILE[:2] + segment(1, b"Exif\0\0" + LONG) * (LARGE // 65_000) + JPEG_FILE[2:],
        JPEG_FILE[:2] + b"\xff" * LARGE + JPEG_FILE[2:],
        GIF_FILE[:GIF_HEAD] + b"\x21\xfe" + (b"\xff" + LONG[:255]) * (LARGE // 256) + b"\0" + GIF_FILE[GIF_HEAD:],
        PNG_FILE[:HEAD] + chunk(b"tEXt", LONG * (LARGE // 65_000)) + PNG_FILE[HEAD:],
        encoded("WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08" + b"\0" * LARGE),
    ],
    ids=["EXIF", "filling", "comment", "text", "WebP"],
)
def test_large_metadata_take_little_time(tmp_path: Path, file: bytes) -> None:
    (tmp_path / "a").write_bytes(file)
    began = time.process_time()
    assert prepare(tmp_path, "a", BUDGET).width == 200
    assert time.process_time() - began < 5, "joined segment by segment it would be half a minute"


def test_more_pieces_of_metadata_than_anyone_writes_are_refused(tmp_path: Path) -> None:
    many = 3_000_000
    for file in (
        JPEG_FILE[:2] + segment(5, b"") * many + JPEG_FILE[2:],
        PNG_FILE[:HEAD] + chunk(b"tEXt", b"") * many + PNG_FILE[HEAD:],
        GIF_FILE[:GIF_HEAD] + b"\x21\xfe\0" * many + GIF_FILE[GIF_HEAD:],
    ):
        (tmp_path / "a").write_bytes(file.ljust(5 << 20))
        with pytest.raises(ImageFailure, match="more than 1,000,000 pieces of metadata"):
            prepare(tmp_path, "a", BUDGET)


def test_a_sound_image_is_read_as_it_is() -> None:
    for kind in ("JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP"):
        assert next(readings(encoded(kind))) == encoded(kind)
    assert next(readings(PNG_FILE)) == PNG_FILE


SOUND = [PNG_FILE, JPEG_FILE, GIF_FILE, WEBP_FILE, encoded("AVIF"), *(file for _, file, _ in broken())]


@given(st.sampled_from(SOUND), st.integers(0, 300), st.integers(0, 100), st.binary(max_size=20), st.integers(0, 5000))
def test_no_bytes_stop_the_walk_through_metadata(file: bytes, at: int, cut: int, more: bytes, size: int) -> None:
    damaged = (file[:at] + more + file[at + cut :])[: size or None]
    with suppress(ImageFailure):
        assert 1 <= len(list(readings(damaged))) <= 3
