"""Files under every orientation → the upright picture, as it is sent and as the report shows it."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from tests.support.image_bytes import Entry, short, tiff
from vllm_annotate.images.prepare import prepare, thumbnail
from vllm_annotate.recipe.image_budget import ImageBudget

ORIENTATION, XMP = 274, 700
BUDGET = ImageBudget(min_pixels=56 * 56, max_pixels=336 * 168)
CORNERS = ("red", "lime", "blue", "yellow")  # top left, top right, bottom left, bottom right
# How each orientation stores the upright image: the inverse of the tag's transposition.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
NONSENSE = (None, 0, 9, 65535, "6")
Save = Callable[[Image.Image, Path, "int | str | None"], None]


def drawing(width: int, height: int) -> Image.Image:
    """Draws four corners of different colours: no two orientations look the same."""
    image = Image.new("RGB", (width, height))
    for number, colour in enumerate(CORNERS):
        left, top = number % 2 * width // 2, number // 2 * height // 2
        image.paste(colour, (left, top, left + width // 2, top + height // 2))
    return image


def corners(jpeg: bytes) -> list[str]:
    """Returns the name of the colour in each corner."""
    with Image.open(io.BytesIO(jpeg)) as image:
        across, down = image.width // 4, image.height // 4
        places = [(x, y) for y in (down, 3 * down) for x in (across, 3 * across)]
        named = {Image.new("RGB", (1, 1), colour).getpixel((0, 0)): colour for colour in CORNERS}
        seen = [image.getpixel(place) for place in places]
    assert all(isinstance(pixel, tuple) for pixel in seen)
    return [named.get(tuple(255 * (band > 127) for band in pixel), str(pixel)) for pixel in seen]  # type: ignore[union-attr]


def value(orientation: int | str) -> bytes:
    """Returns type, count and value as in EXIF and TIFF, little-endian."""
    if isinstance(orientation, str):
        return struct.pack("<HI4s", 2, 2, orientation.encode())
    return struct.pack("<HIHH", 3, 1, orientation, 0)


def exif(orientation: int | str | None) -> bytes:
    """Returns EXIF with only this tag."""
    if orientation is None:
        return b""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<H", ORIENTATION) + value(orientation) + bytes(4)


def xmp(orientation: int | str | None) -> str:
    named = "" if orientation is None else f'tiff:Orientation="{orientation}"'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {named}/></x:xmpmeta>'


def with_exif(file_format: str, **options: object) -> Save:
    def save(image: Image.Image, path: Path, orientation: int | str | None) -> None:
        image.save(path, file_format, exif=exif(orientation), **options)

    return save


def with_xmp(file_format: str) -> Save:
    return lambda image, path, orientation: image.save(path, file_format, xmp=xmp(orientation).encode())


def png_with_xmp(image: Image.Image, path: Path, orientation: int | str | None) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp(orientation))
    image.save(path, "PNG", pnginfo=text)


def png_with_exif_at_its_end(image: Image.Image, path: Path, orientation: int | str | None) -> None:
    image.save(path, "PNG", exif=exif(orientation))
    data = path.read_bytes()
    at = data.find(b"eXIf") - 4
    if at >= 0:
        (length,) = struct.unpack_from(">I", data, at)
        chunk = data[at : at + length + 12]
        path.write_bytes(data.replace(chunk, b"")[:-12] + chunk + data[-12:])


def saved_tiff(**options: object) -> Save:
    def save(image: Image.Image, path: Path, orientation: int | str | None) -> None:
        image.save(path, "TIFF", tiffinfo={} if orientation is None else {ORIENTATION: 1}, **options)
        data = path.read_bytes()
        if orientation is not None:  # libtiff refuses invalid values
            entry = struct.pack("<H", ORIENTATION)
            assert entry + value(1) in data
            path.write_bytes(data.replace(entry + value(1), entry + value(orientation), 1))

    return save


def tiff_with_xmp(image: Image.Image, path: Path, orientation: int | str | None) -> None:
    image.save(path, "TIFF", tiffinfo={XMP: xmp(orientation).encode()})


def mpo(image: Image.Image, path: Path, orientation: int | str | None) -> None:
    other = Image.new("RGB", (50, 90), "black")
    image.save(path, "MPO", save_all=True, append_images=[other], exif=exif(orientation))


FORMATS: dict[str, Save] = {
    "JPEG": with_exif("JPEG", quality=95),
    "JPEG, XMP": with_xmp("JPEG"),
    "MPO": mpo,
    "PNG": with_exif("PNG"),
    "PNG, eXIf at its end": png_with_exif_at_its_end,
    "PNG, XMP": png_with_xmp,
    "WEBP": with_exif("WEBP", lossless=True),
    "WEBP, XMP": with_xmp("WEBP"),
    "AVIF": with_exif("AVIF", quality=95),
    "AVIF, XMP": with_xmp("AVIF"),
    "TIFF": saved_tiff(),
    "TIFF, deflate": saved_tiff(compression="tiff_adobe_deflate"),
    "TIFF, LZW": saved_tiff(compression="tiff_lzw"),
    "TIFF, JPEG": saved_tiff(compression="jpeg"),
    "TIFF of two pages": saved_tiff(save_all=True, append_images=[Image.new("RGB", (50, 90))]),
    "TIFF, XMP": tiff_with_xmp,
}


def check(path: Path, size: tuple[int, int]) -> None:
    """Checks that both images show the drawing in its size."""
    prepared = prepare(path.parent, path.name, BUDGET)
    assert (prepared.width, prepared.height) == size
    assert prepared.sent_width > prepared.sent_height
    with Image.open(io.BytesIO(prepared.content)) as sent:
        assert sent.size == (prepared.sent_width, prepared.sent_height)
        assert sent.getexif().get(ORIENTATION) not in STORED
    assert corners(prepared.content) == list(CORNERS)
    jpeg, small = thumbnail(path.parent, path.name, 60)
    assert small == (60, round(60 * size[1] / size[0]))
    assert corners(jpeg) == list(CORNERS)


def save(name: str, upright: Image.Image, path: Path, orientation: int | str | None) -> None:
    """Writes a file that viewers show as `upright`."""
    method = STORED.get(orientation) if isinstance(orientation, int) else None
    FORMATS[name](upright if method is None else upright.transpose(method), path, orientation)


# Pillow reads one digit from XMP, and writes only numbers to AVIF.
CASES = [
    (name, orientation)
    for name in FORMATS
    for orientation in (*range(1, 9), *NONSENSE)
    if not ("XMP" in name and orientation in (65535, "6")) and (name, orientation) != ("AVIF", "6")
]


@pytest.mark.parametrize(("name", "orientation"), CASES, ids=repr)
def test_every_orientation_in_every_format_is_turned_upright_once(
    tmp_path: Path, name: str, orientation: int | str | None
) -> None:
    for size in ((112, 56), (300, 200)):  # sent in full size, and resized
        save(name, drawing(*size), tmp_path / "a", orientation)
        check(tmp_path / "a", size)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "JPEG, XMP", "MPO"])
def test_a_large_jpeg_is_turned_upright_from_reduced_pixels(tmp_path: Path, name: str, orientation: int) -> None:
    save(name, drawing(2400, 800), tmp_path / "a", orientation)
    check(tmp_path / "a", (2400, 800))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_image_that_must_be_turned_is_never_sent_as_it_is(tmp_path: Path, orientation: int) -> None:
    for name in FORMATS:
        save(name, drawing(112, 56), tmp_path / "a", orientation)
        sent = prepare(tmp_path, "a", BUDGET, as_they_are=True)
        assert sent.sent_as == "jpeg"
        assert corners(sent.content) == list(CORNERS)


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "ICO", "JPEG2000", "PPM", "TGA"])
def test_a_format_without_orientation_is_shown_as_stored(tmp_path: Path, file_format: str) -> None:
    for size in ((112, 56), (200, 100)):
        upright = drawing(*size)
        upright.save(tmp_path / "a", file_format, **({"sizes": [size]} if file_format == "ICO" else {}))
        check(tmp_path / "a", size)


@pytest.mark.parametrize(
    ("origin", "flipped"),
    [(0x20, None), (0x00, Image.Transpose.FLIP_TOP_BOTTOM), (0x30, Image.Transpose.FLIP_LEFT_RIGHT),
     (0x10, Image.Transpose.ROTATE_180)],
)  # fmt: skip
def test_a_tga_may_start_in_any_corner(tmp_path: Path, origin: int, flipped: Image.Transpose | None) -> None:
    stored = drawing(112, 56) if flipped is None else drawing(112, 56).transpose(flipped)
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, *stored.size, 24, origin)
    (tmp_path / "a").write_bytes(header + stored.tobytes("raw", "BGR"))
    check(tmp_path / "a", (112, 56))


@pytest.mark.parametrize("broken", [b"garbage....", b"II*\0\xff\0\0\0", exif(6)[6:-9]], ids=repr)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_an_image_with_broken_exif_is_shown_as_stored(tmp_path: Path, file_format: str, broken: bytes) -> None:
    drawing(112, 56).save(tmp_path / "a", file_format, exif=b"Exif\0\0" + broken)
    check(tmp_path / "a", (112, 56))


def test_a_jpeg_whose_exif_pillow_refuses_is_shown_and_sent_without_it(tmp_path: Path) -> None:
    resolution = struct.pack(
        "<HHHI4sHHIHH", 2, 0x011A, 2, 1, b"7", 0x0128, 3, 1, 2, 0
    )  # a letter instead of a fraction
    refused = b"Exif\0\0II*\0\x08\0\0\0" + resolution + bytes(4)
    drawing(112, 56).save(tmp_path / "a", "JPEG", exif=refused)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes().replace(b"JFIF", b"none"))
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "a")
    check(tmp_path / "a", (112, 56))
    assert refused[6:] not in prepare(tmp_path, "a", BUDGET).content


def test_an_avif_with_invalid_exif_is_shown(tmp_path: Path) -> None:
    drawing(112, 56).save(tmp_path / "a", "AVIF", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes().replace(b"II*\0", b"none"))
    check(tmp_path / "a", (112, 56))


XMP_OF_6 = xmp(6).encode()
BROKEN_TAGS: dict[str, Entry] = {
    "XMP as text": (XMP, 2, len(XMP_OF_6), XMP_OF_6),
    "XMP as numbers": short(XMP, 1, 2, 3),
    "XMP as a number": (XMP, 4, 1, b"\7\0\0\0"),
    "EXIF before the file": (34665, 9, 1, struct.pack("<i", -5)),
    "EXIF behind the file": (34665, 4, 1, struct.pack("<I", 99_999)),
    "EXIF nowhere": (34665, 12, 1, struct.pack("<d", float("nan"))),
    "GPS before the file": (34853, 9, 1, struct.pack("<i", -5)),
}


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("broken", BROKEN_TAGS)
def test_a_tiff_with_broken_tags_is_turned_by_its_orientation(tmp_path: Path, broken: str, deflate: bool) -> None:
    stored, tag = drawing(112, 56), BROKEN_TAGS[broken]
    (tmp_path / "a").write_bytes(tiff(stored.size, (8, 8, 8), 2, stored.tobytes(), tag, deflate=deflate))
    check(tmp_path / "a", (112, 56))
    stored = stored.transpose(STORED[6])
    turned = short(ORIENTATION, 6)
    (tmp_path / "a").write_bytes(tiff(stored.size, (8, 8, 8), 2, stored.tobytes(), tag, turned, deflate=deflate))
    check(tmp_path / "a", (112, 56))
