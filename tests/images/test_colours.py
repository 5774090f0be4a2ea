"""Files of every depth and mode → the colours that viewers show."""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image

from tests.support.image_bytes import chunk, png, short, tiff
from vllm_annotate.images.colours import to_rgb
from vllm_annotate.images.prepare import FORMATS, prepare, thumbnail
from vllm_annotate.images.upright import upright
from vllm_annotate.recipe.image_budget import ImageBudget

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
Colour = tuple[int, int, int]


def shown(data: bytes) -> list[Colour]:
    """Returns the pixels of the first row, as sent."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        rgb = upright(image).resized(image.size)
    assert rgb.mode == "RGB"
    pixels = [rgb.getpixel((x, 0)) for x in range(rgb.width)]
    return [(red, green, blue) for red, green, blue in pixels]  # type: ignore[misc]


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def grey(*shades: int) -> list[Colour]:
    return [(shade, shade, shade) for shade in shades]


def big_endian(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG
COLOURS = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120]))
COLOURS_SHOWN = [(10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120)]
SHADES_OF_16 = big_endian(0, 300, 0x8000, 0xFFFF)


def clear(*values: int) -> bytes:
    return chunk(b"tRNS", big_endian(*values))


PNGS: dict[str, tuple[bytes, list[Colour]]] = {
    "1-bit grey": (png((2, 1), 1, GREY, b"\0\x40"), [BLACK, WHITE]),
    "1-bit grey, black clear": (png((2, 1), 1, GREY, b"\0\x40", clear(0)), [WHITE, WHITE]),
    "1-bit grey, white clear": (png((2, 1), 1, GREY, b"\0\x40", clear(1)), [BLACK, WHITE]),
    "2-bit grey": (png((4, 1), 2, GREY, b"\0\x1b"), grey(0, 85, 170, 255)),
    "2-bit grey, one clear": (png((4, 1), 2, GREY, b"\0\x1b", clear(1)), grey(0, 255, 170, 255)),
    "4-bit grey": (png((4, 1), 4, GREY, b"\0\x07\xaf"), grey(0, 119, 170, 255)),
    "4-bit grey, one clear": (png((4, 1), 4, GREY, b"\0\x07\xaf", clear(10)), grey(0, 119, 255, 255)),
    "8-bit grey": (png((3, 1), 8, GREY, b"\0\x00\x40\x80"), grey(0, 64, 128)),
    "8-bit grey, one clear": (png((3, 1), 8, GREY, b"\0\x00\x40\x80", clear(64)), grey(0, 255, 128)),
    "16-bit grey": (png((4, 1), 16, GREY, b"\0" + SHADES_OF_16), grey(0, 1, 128, 255)),
    "16-bit grey, one clear": (png((4, 1), 16, GREY, b"\0" + SHADES_OF_16, clear(300)), grey(0, 255, 128, 255)),
    "16-bit grey, none clear by the low byte": (
        png((4, 1), 16, GREY, b"\0" + SHADES_OF_16, clear(0x8001)), grey(0, 1, 128, 255)),
    "8-bit RGB": (png((2, 1), 8, RGB, b"\0\1\2\3\xff\x80\0"), [(1, 2, 3), (255, 128, 0)]),
    "8-bit RGB, one clear": (
        png((2, 1), 8, RGB, b"\0\1\2\3\xff\x80\0", clear(1, 2, 3)), [WHITE, (255, 128, 0)]),
    "16-bit RGB": (
        png((2, 1), 16, RGB, b"\0" + big_endian(0x1234, 0x5678, 0x9ABC, 0xFFFF, 0x8000, 0)),
        [(0x12, 0x56, 0x9A), (255, 128, 0)]),
    "16-bit RGB, one clear": (
        png((2, 1), 16, RGB, b"\0" + big_endian(0x1234, 0x5678, 0x9ABC, 0xFFFF, 0x8000, 0),
            clear(0x1234, 0x5678, 0x9ABC)),
        [WHITE, (255, 128, 0)]),
    "1-bit palette": (png((2, 1), 1, PALETTE, b"\0\x40", COLOURS), COLOURS_SHOWN[:2]),
    "2-bit palette": (png((4, 1), 2, PALETTE, b"\0\x1b", COLOURS), COLOURS_SHOWN),
    "2-bit palette, one clear": (
        png((4, 1), 2, PALETTE, b"\0\x1b", COLOURS, chunk(b"tRNS", b"\xff\0")),
        [COLOURS_SHOWN[0], WHITE, *COLOURS_SHOWN[2:]]),
    "4-bit palette, some half clear": (
        png((4, 1), 4, PALETTE, b"\0\x01\x23", COLOURS, chunk(b"tRNS", b"\xff\0\x80")),
        [COLOURS_SHOWN[0], WHITE, (162, 167, 172), COLOURS_SHOWN[3]]),
    "8-bit palette, one clear": (
        png((4, 1), 8, PALETTE, b"\0\0\1\2\3", COLOURS, chunk(b"tRNS", b"\xff\xff\0")),
        [*COLOURS_SHOWN[:2], WHITE, COLOURS_SHOWN[3]]),
    "8-bit grey with alpha": (png((3, 1), 8, GREY_ALPHA, b"\0\x40\xff\x40\x00\x00\x80"), grey(64, 255, 127)),
    "16-bit grey with alpha": (
        png((2, 1), 16, GREY_ALPHA, b"\0" + big_endian(0x4000, 0xFFFF, 0x4000, 0)), grey(64, 255)),
    "8-bit RGB with alpha": (png((2, 1), 8, RGB_ALPHA, b"\0\1\2\3\xff\1\2\3\0"), [(1, 2, 3), WHITE]),
    "16-bit RGB with alpha": (
        png((2, 1), 16, RGB_ALPHA, b"\0" + big_endian(0x1234, 0x5678, 0x9ABC, 0xFFFF, 1, 2, 3, 0)),
        [(0x12, 0x56, 0x9A), WHITE]),
}  # fmt: skip


@pytest.mark.parametrize("name", PNGS)
def test_a_png_of_every_depth_keeps_its_colours_and_turns_transparent_pixels_white(name: str) -> None:
    data, expected = PNGS[name]
    assert shown(data) == expected


LITTLE_16 = struct.pack("<4H", 0, 300, 0x8000, 0xFFFF)
TIFFS: dict[str, tuple[tuple[int, ...], int, bytes, list[Colour]]] = {  # bits per channel, photometric, pixels
    "1-bit": ((1,), 1, b"\x50", [BLACK, WHITE, BLACK, WHITE]),
    "1-bit, white is 0": ((1,), 0, b"\x50", [WHITE, BLACK, WHITE, BLACK]),
    "4-bit grey": ((4,), 1, b"\x07\xaf", grey(0, 119, 170, 255)),
    "8-bit grey, white is 0": ((8,), 0, b"\0\x40\x80\xff", grey(255, 191, 127, 0)),
    "12-bit grey": ((12,), 1, bytes.fromhex("000 400 800 fff".replace(" ", "")), grey(0, 64, 128, 255)),
    "16-bit grey": ((16,), 1, LITTLE_16, grey(0, 1, 128, 255)),
    "16-bit grey, white is 0": ((16,), 0, LITTLE_16, grey(255, 254, 127, 0)),
    "16-bit RGB": ((16,) * 3, 2, LITTLE_16 * 3, [(0, 1, 128), (255, 0, 1), (128, 255, 0), (1, 128, 255)]),
    "CMYK": ((8,) * 4, 5, bytes([0, 0, 0, 0, 255, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 255]),
             [WHITE, (0, 255, 255), (255, 155, 255), BLACK]),
    "LAB": ((8,) * 3, 8, bytes([0, 0, 0, 255, 0, 0, 137, 0, 0, 138, 81, 70]), [BLACK, WHITE, (128,) * 3, (254, 0, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_of_every_depth_keeps_its_colours(name: str, deflate: bool) -> None:
    bits, photometric, pixels, expected = TIFFS[name]
    found = shown(tiff((4, 1), bits, photometric, pixels, deflate=deflate))
    assert found == [pytest.approx(colour, abs=5) for colour in expected]


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("premultiplied", [True, False])
def test_alpha_of_a_tiff_is_composited_on_white(premultiplied: bool, deflate: bool) -> None:
    extra = short(338, 1 if premultiplied else 2)
    half = 32 if premultiplied else 64
    pixels = bytes([64, 255, 0, 0, half, 128])
    found = shown(tiff((3, 1), (8, 8), 1, pixels, extra, deflate=deflate))
    assert found[:2] == grey(64, 255)
    assert abs(found[2][0] - 159) <= 1
    pixels = bytes([64, 10, 0, 255, 0, 0, 0, 0])
    assert shown(tiff((2, 1), (8,) * 4, 2, pixels, extra, deflate=deflate)) == [(64, 10, 0), WHITE]


@pytest.mark.parametrize("photometric", [0, 1])
def test_a_float_tiff_is_stretched_in_the_direction_of_its_shades(photometric: int) -> None:
    pixels = struct.pack("<3f", -1.0, 0.0, 1.0)
    expected = grey(0, 127, 255)
    found = shown(tiff((3, 1), (32,), photometric, pixels, short(339, 3)))
    assert found == (expected if photometric else grey(255, 128, 0))


@pytest.mark.parametrize(("most", "stored"), [(65535, 0x4000), (1023, 256), (4095, 1024)])
def test_a_pgm_of_more_than_8_bit_keeps_its_shades(most: int, stored: int) -> None:
    header = f"P5 3 1 {most}\n".encode()
    assert shown(header + big_endian(0, stored, stored)) == grey(0, 64, 64)


MODES = {  # that Pillow writes
    "AVIF": ("L", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "ICO": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
    "TGA": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "WEBP": ("RGB", "RGBA"),
}


@pytest.mark.parametrize(("file_format", "mode"), [(name, mode) for name, modes in MODES.items() for mode in modes])
def test_every_mode_in_every_format_keeps_its_colours(file_format: str, mode: str) -> None:
    image = Image.new("RGB", (16, 16), (204, 102, 51)).convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    expected = image.convert("RGB").getpixel((0, 0))
    assert shown(saved(image, file_format))[0] == pytest.approx(expected, abs=6)


@pytest.mark.parametrize("file_format", [name for name in MODES if name not in ("BMP", "JPEG", "PPM")])
def test_alpha_of_every_format_is_composited_on_white(file_format: str) -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((204, 102, 51, 255), (0, 0, 16, 32))
    found = shown(saved(image, file_format))
    assert found[4] == pytest.approx((204, 102, 51), abs=6)
    assert found[28] == pytest.approx(WHITE, abs=6)


def test_a_palette_with_alpha_is_composited_on_white() -> None:
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0x20)
    assert shown(header + bytes([10, 20, 30, 0, 40, 50, 60, 255]) + b"\0\1") == [WHITE, (60, 50, 40)]


def test_transparent_pixels_of_a_gif_are_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert shown(saved(image, "GIF", transparency=0)) == [WHITE, (40, 50, 60)]


def test_transparent_pixels_of_a_png_in_an_icon_are_white() -> None:
    data = png((4, 1), 2, PALETTE, b"\0\x1b", COLOURS, chunk(b"tRNS", b"\xff\0"))
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 4, 1, 0, 0, 1, 8, len(data), 22) + data
    assert shown(icon) == [COLOURS_SHOWN[0], WHITE, *COLOURS_SHOWN[2:]]


def test_alpha_that_was_never_set_hides_nothing() -> None:
    pixels = bytes([30, 20, 10, 0, 60, 50, 40, 0])
    tga = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 32, 0x20)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    bmp = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks
    bmp = b"BM" + struct.pack("<IHHI", 14 + len(bmp) + 8, 0, 0, 14 + len(bmp)) + bmp
    for header in (tga, bmp):
        assert shown(header + pixels) == [(10, 20, 30), (40, 50, 60)]


def test_a_16_bit_scan_with_a_transparent_margin_keeps_its_shades(tmp_path: Path) -> None:
    row = b"\0" + big_endian(*[0] * 28, *[0x4000] * 28, *[0xC000] * 28, *[0xFFFF] * 28)
    (tmp_path / "scan.png").write_bytes(png((112, 56), 16, GREY, row * 56, clear(0)))
    sent = prepare(tmp_path, "scan.png", ImageBudget(56 * 56, 112 * 56)).content
    for jpeg in (sent, thumbnail(tmp_path, "scan.png", 112)[0]):
        with Image.open(io.BytesIO(jpeg)) as image:
            found = [image.convert("L").getpixel((x, 28)) for x in (14, 42, 70, 98)]
        assert [round(shade / 4) for shade in found] == [64, 16, 48, 64]  # type: ignore[operator]


def test_16_bit_of_either_byte_order_keeps_its_shades() -> None:
    for mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        assert to_rgb(Image.new(mode, (1, 1), 0x8123)).getpixel((0, 0)) == (129, 129, 129)


def test_32_bit_and_float_images_are_stretched_from_their_extremes() -> None:
    ramp = Image.new("F", (2, 1))
    ramp.putpixel((0, 0), -3.5)
    ramp.putpixel((1, 0), 8.25)
    assert [to_rgb(ramp).getpixel((x, 0)) for x in (0, 1)] == [BLACK, WHITE]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"])
def test_every_mode_becomes_8_bit_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (8, 8))).mode == "RGB"
