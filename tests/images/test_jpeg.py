"""JPEGs without their metadata: the same pixels as Pillow shows, and none of what a file tells besides."""

import io
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageOps, ImageStat

from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.jpeg import PlainJpeg, plain_jpeg
from vllm_annotate.images.prepare import PreparedImage, prepare
from vllm_annotate.recipe.image_budget import ImageBudget

BUDGET = ImageBudget(min_pixels=128 * 784, max_pixels=1280 * 784)
SECRET = b"52.5163 N 13.3777 E, at Jane's"
XMP = b"http://ns.adobe.com/xap/1.0/\0"
Change = Callable[[bytes], bytes]


def picture(rng: random.Random, width: int, height: int) -> Image.Image:
    """Smooth noise, as a photograph has it."""
    noise = Image.frombytes("RGB", (16, 12), rng.randbytes(16 * 12 * 3))
    return noise.resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "JPEG", "quality": 90} | options))  # type: ignore[arg-type]
    return buffer.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def after_start(*segments: bytes) -> Change:
    return lambda file: file[:2] + b"".join(segments) + file[2:]


def before_the_last_scan(*segments: bytes) -> Change:
    return lambda file: file[: (at := file.rindex(b"\xff\xda"))] + b"".join(segments) + file[at:]


def with_exif(orientation: int | None) -> bytes:
    """EXIF with a description, a GPS position and a thumbnail, which has an end of its own."""
    exif = Image.Exif()
    exif[270] = SECRET.decode()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0), 28: SECRET}
    if orientation is not None:
        exif[274] = orientation
    return segment(0xE1, exif.tobytes() + saved(Image.new("RGB", (16, 16)), comment=SECRET))


def multi_picture(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "MPO", save_all=True, append_images=[image.resize((64, 48))], comment=SECRET)
    return buffer.getvalue()


EXIF_OF_6 = with_exif(6)[4:]
METADATA: dict[str, Change] = {
    "nothing": lambda file: file,
    **{f"EXIF {turn}": after_start(with_exif(turn)) for turn in (None, *range(10))},
    "EXIF after the first segment": lambda file: file[: (at := 4 + file[5])] + with_exif(6) + file[at:],
    "two EXIF": after_start(with_exif(1), with_exif(6)),
    "EXIF in two parts": after_start(segment(0xE1, EXIF_OF_6[:90]), segment(0xE1, b"Exif\0\0" + EXIF_OF_6[90:])),
    "EXIF between scans": before_the_last_scan(with_exif(6)),
    "broken EXIF": after_start(segment(0xE1, b"Exif\0\0II*\0\xff\xff\0\0" + SECRET)),
    "EXIF cut off": after_start(segment(0xE1, EXIF_OF_6[:40] + SECRET)),
    "huge EXIF": after_start(segment(0xE1, EXIF_OF_6 + SECRET * 2000)),
    "XMP": after_start(segment(0xE1, XMP + b"<x>" + SECRET)),
    "XMP that turns": after_start(segment(0xE1, XMP + b'<x tiff:Orientation="6"/>' + SECRET)),
    "XMP that turns, and EXIF that does not": after_start(
        with_exif(1), segment(0xE1, XMP + b'tiff:Orientation="6"' + SECRET)
    ),
    "two XMP": after_start(segment(0xE1, XMP + b'tiff:Orientation="6"'), segment(0xE1, XMP + SECRET)),
    "IPTC": after_start(segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x26" + SECRET)),
    "comments": after_start(*[segment(0xFE, SECRET)] * 3),
    "applications": after_start(*[segment(0xE0 + number, b"maker\0" + SECRET) for number in range(16)]),
    "comments between scans": before_the_last_scan(segment(0xFE, SECRET), segment(0xE1, XMP + SECRET)),
    "a long JFIF": after_start(segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\1\1" + SECRET)),
    "a long Adobe": after_start(segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + SECRET)),
    "a JFIF thumbnail": after_start(segment(0xE0, b"JFXX\0\x10" + saved(Image.new("RGB", (16, 16)), comment=SECRET))),
    "junk after the end": lambda file: file + SECRET,
    "another image after the end": lambda file: file + saved(Image.new("RGB", (64, 64)), comment=SECRET),
}
FILES: dict[str, Callable[[Image.Image], bytes]] = {
    "4:2:0": saved,
    "4:4:4, quality 100": lambda image: saved(image, quality=100, subsampling=0),
    "progressive": lambda image: saved(image, progressive=True),
    "restart markers": lambda image: saved(image, restart_marker_blocks=3),
    "grey": lambda image: saved(image.convert("L")),
    "a profile": lambda image: saved(image, icc_profile=b"p" * 70_000),
    "Adobe RGB": lambda image: saved(image, keep_rgb=True),
    "Adobe YCbCr": lambda image: segment_instead_of_jfif(saved(image), segment(0xEE, b"Adobe\0\x64\0\0\0\0\1")),
    "no JFIF": lambda image: segment_instead_of_jfif(saved(image), b""),
    "CMYK": lambda image: saved(image.convert("CMYK")),
    "several pictures": multi_picture,
}


def segment_instead_of_jfif(file: bytes, other: bytes) -> bytes:
    assert file[6:10] == b"JFIF"
    return file[:2] + other + file[20:]


def any_size(data: bytes) -> PlainJpeg | None:
    return plain_jpeg(data, lambda _width, _height: True)


def prepared_from(folder: Path, file: bytes, *, as_they_are: bool = True) -> PreparedImage:
    (folder / "a.jpg").write_bytes(file)
    return prepare(folder, "a.jpg", BUDGET, as_they_are=as_they_are)


def shown(file: bytes) -> Image.Image:
    """The image as a viewer shows it; one with broken EXIF is not turned."""
    image = Image.open(io.BytesIO(file))
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:
        return image.convert("RGB")


@pytest.mark.parametrize("metadata", METADATA)
@pytest.mark.parametrize("kind", FILES)
def test_what_is_sent_shows_the_same_pixels_and_tells_nothing_else(tmp_path: Path, kind: str, metadata: str) -> None:
    rng = random.Random(f"{kind}, {metadata}")
    file = METADATA[metadata](FILES[kind](picture(rng, rng.randint(360, 1100), rng.randint(360, 800))))
    sent = prepared_from(tmp_path, file)
    seen = shown(file)
    assert (sent.width, sent.height) == seen.size
    assert SECRET not in sent.content
    with Image.open(io.BytesIO(sent.content)) as image:
        assert not image.info.keys() & {"exif", "xmp", "comment", "photoshop", "mp"}
        if sent.sent_as == "original":
            assert image.convert("RGB").tobytes() == seen.tobytes()
        else:
            difference = ImageChops.difference(image.convert("RGB"), seen.resize(image.size, Image.Resampling.BICUBIC))
            assert max(ImageStat.Stat(difference).rms) < 5
    resized = prepared_from(tmp_path, file, as_they_are=False)
    assert (resized.sent_width, resized.sent_height) == (sent.sent_width, sent.sent_height)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "CMYK"])
def test_an_upright_jpeg_is_sent_with_its_own_bytes(tmp_path: Path, kind: str) -> None:
    file = FILES[kind](picture(random.Random(kind), 640, 480))
    for metadata in ("nothing", "EXIF None", "EXIF 1", "XMP", "IPTC", "comments", "applications", "junk after the end"):
        sent = prepared_from(tmp_path, METADATA[metadata](file))
        assert sent.sent_as == "original"
        assert (sent.sent_width, sent.sent_height) == (644, 476)
        if kind not in ("several pictures",):
            assert sent.content == file


def test_a_profile_is_sent_and_an_adobe_segment_too() -> None:
    plain = any_size(METADATA["applications"](FILES["a profile"](picture(random.Random(1), 64, 48))))
    assert plain is not None
    assert Image.open(io.BytesIO(plain.content)).info["icc_profile"] == b"p" * 70_000


def test_a_torn_header_is_never_sent_whatever_end_is_put_behind_it() -> None:
    rng = random.Random(5)
    for kind in ("4:2:0", "progressive", "grey"):
        bare = FILES[kind](picture(rng, 80, 60))
        file = METADATA["EXIF 1"](bare)
        for at in range(2, len(file) - len(bare) + bare.index(b"\xff\xda") + 8):
            assert any_size(file[:at] + b"\xff\xd9") is None, (kind, at)
            assert any_size(file[:at]) is None, (kind, at)


def test_pixels_without_an_end_are_not_sent() -> None:
    for kind in ("4:2:0", "progressive", "restart markers"):
        file = FILES[kind](picture(random.Random(6), 80, 60))
        scan = file.rindex(b"\xff\xda") + 14
        assert not any(any_size(file[:at] + tail) for at in range(scan, len(file)) for tail in (b"", b"\xff", b"\0\0"))
        assert any_size(file) == PlainJpeg(file, 80, 60)


PLAIN = FILES["4:2:0"](picture(random.Random(7), 80, 60))
FRAME, TABLE, SCAN = (PLAIN.index(bytes((0xFF, marker))) for marker in (0xC0, 0xC4, 0xDA))
OWN_FRAME = PLAIN[FRAME : FRAME + 19]


@pytest.mark.parametrize(
    "file",
    [
        PLAIN[:FRAME] + OWN_FRAME + PLAIN[FRAME:],
        PLAIN[:FRAME] + PLAIN[FRAME + 19 : SCAN] + PLAIN[SCAN : SCAN + 14] + OWN_FRAME + PLAIN[SCAN + 14 :],
        PLAIN[:SCAN] + PLAIN[-2:],
        PLAIN[:FRAME] + PLAIN[FRAME + 19 :],
        PLAIN[: FRAME + 5] + b"\0\0" + PLAIN[FRAME + 7 :],
        PLAIN[: FRAME + 5] + b"\0\0" + PLAIN[FRAME + 7 : -2] + b"\xff\xdc\0\x04\0\x3c" + PLAIN[-2:],
        PLAIN[:-2] + b"\xff\xdc\0\x04\0\x3c" + PLAIN[-2:],
        PLAIN[: FRAME + 7] + b"\0\0" + PLAIN[FRAME + 9 :],
        PLAIN[: FRAME + 4] + b"\x0c" + PLAIN[FRAME + 5 :],
        *(PLAIN[: FRAME + 1] + bytes((marker,)) + PLAIN[FRAME + 2 :] for marker in (0xC3, 0xC5, 0xC9, 0xCA, 0xCF)),
        PLAIN[:TABLE] + b"\xff\xd0" + PLAIN[TABLE:],
        PLAIN[:TABLE] + b"\xff\xd8" + PLAIN[TABLE:],
        PLAIN[:TABLE] + b"\xff\xd9" + PLAIN[TABLE:],
        PLAIN[:TABLE] + b"\xff\xcc\0\x04\0\x01" + PLAIN[TABLE:],
        PLAIN[:TABLE] + b"\xff\xfe\0\0" + PLAIN[TABLE:],
        PLAIN[:TABLE] + b"\xff\xfe\0\x01" + PLAIN[TABLE:],
        PLAIN[:TABLE] + b"\xff\xfe\xff\xff" + PLAIN[TABLE:],
        PLAIN[:TABLE] + b"\0" + PLAIN[TABLE:],
        PLAIN[:-2] + b"\xff\xe1\xff\xff" + PLAIN[-2:],
        PLAIN[:2] + segment(0xE2, b"ICC_PROFILE\0\1") + PLAIN[2:],
        PLAIN[:2] + PLAIN[-2:],
        PLAIN[:2],
        PLAIN[:-2],
        b"\xff\xd8\xff",
        b"\xff\xd8",
        b"\xff",
        b"",
        PLAIN[1:],
    ],
    ids=[
        "two frames", "a frame within the scan", "no scan", "no frame", "height 0", "a height after the pixels",
        "two heights", "width 0", "12 bits", "lossless", "hierarchical", "arithmetic", "progressive arithmetic",
        "lossless arithmetic", "a restart among tables", "two starts", "an end among tables", "arithmetic tables",
        "length 0", "length 1", "a segment over the end", "junk among tables", "a segment over the end after the scan",
        "a profile without a number", "nothing between start and end", "a start", "no end", "a start and a marker",
        "only a start", "half a start", "nothing", "no start",
    ],
)  # fmt: skip
def test_an_unusual_or_damaged_jpeg_is_left_to_the_decoder(file: bytes) -> None:
    assert any_size(file) is None


@pytest.mark.parametrize(
    "file",
    [
        PLAIN[:2] + segment(0xE5, b"") * 3_000_000 + PLAIN[2:],
        PLAIN[:2] + b"\xff\xe5\0\0" * 3_000_000 + PLAIN[2:],
        PLAIN[:2] + b"\xff" * 50_000_000 + PLAIN[2:],
        PLAIN[:-2] + b"\xff" * 50_000_000 + PLAIN[-2:],
        PLAIN[:-2] + b"\xff\xd0" * 25_000_000 + PLAIN[-2:],
        PLAIN[:-2] + b"\xff\0" * 25_000_000 + PLAIN[-2:],
        PLAIN[:-2] + PLAIN[SCAN : SCAN + 14] * 3_000_000 + PLAIN[-2:],
        PLAIN[:-2] + segment(0xFE, b"") * 3_000_000 + PLAIN[-2:],
        PLAIN + PLAIN * 20_000,
        PLAIN[:2] + segment(0xE1, b"Exif\0\0" + EXIF_OF_6) * 900 + PLAIN[2:],
        PLAIN[:2] + segment(0xE1, XMP + b"x" * 60_000) * 900 + PLAIN[2:],
    ],
    ids=[
        "empty segments", "segments of length 0", "filling", "filling of pixels", "restarts", "stuffed zeros", "scans",
        "comments after the pixels", "images after the end", "EXIF", "XMP",
    ],
)  # fmt: skip
def test_no_file_takes_long_or_much_memory(file: bytes) -> None:
    began = time.process_time()
    plain = any_size(file)
    assert time.process_time() - began < 0.5, "looked at piece by piece, it would be seconds"
    assert plain is None or len(plain.content) == len(PLAIN)


MUTATED = [PLAIN, *(METADATA["EXIF 1"](make(picture(random.Random(8), 80, 60))) for make in FILES.values())]


@given(st.sampled_from(MUTATED), st.integers(0, 1500), st.integers(0, 60), st.binary(max_size=40))
@example(PLAIN, FRAME + 4, 1, b"\x10")
def test_no_bytes_make_it_fail_or_send_another_size_or_metadata(file: bytes, at: int, cut: int, more: bytes) -> None:
    plain = any_size(file[:at] + more + file[at + cut :])
    if plain is not None:
        image = Image.open(io.BytesIO(plain.content))
        assert image.size == (plain.width, plain.height)
        assert image.mode in ("RGB", "L")
        assert not image.info.keys() & {"exif", "xmp", "comment", "photoshop", "mp"}


def test_images_over_the_limits_are_judged_by_their_header(tmp_path: Path) -> None:
    huge = bytearray(PLAIN)
    huge[FRAME + 5 : FRAME + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageFailure, match="4294836225 pixels is over") as caught:
        prepared_from(tmp_path, bytes(huge))
    assert caught.value.kind == "too_large"
