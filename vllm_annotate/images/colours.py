"""Images of any mode → 8-bit RGB."""

import math

from PIL import Image, ImageFile, ImageOps
from PIL.IcoImagePlugin import IcoImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from vllm_annotate.errors import ImageFailure

# Grey PNGs below 8 bit: raw mode → the factor by which Pillow multiplies their pixels, but not the transparent shade.
MULTIPLIED = {"L;2": 85, "L;4": 17}
ALPHA_OFTEN_LEFT_AT_0 = ("BMP", "ICO", "TGA")  # by programs without alpha support


def decoded(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Decodes the image, and scales a PNG's transparent colour (`info["transparency"]`) like its pixels."""
    if isinstance(image, IcoImageFile) and isinstance(icon := image.ico.getimage(image.size), PngImageFile):
        image = icon  # Pillow drops the transparent colour of a PNG in an ICO
    stored_as = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else None
    image.load()
    clear = image.info.get("transparency")
    if stored_as in MULTIPLIED and isinstance(clear, int):
        image.info["transparency"] = clear * MULTIPLIED[stored_as]
    if stored_as == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)  # Pillow keeps the high bytes only
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts decoded pixels to 8-bit RGB, and avoids the errors of a plain `convert("RGB")`.

    Alpha is composited on white (`convert` shows the hidden colours), 16-bit is scaled (`convert` clips it to white),
    32-bit and float are stretched between their extremes (their range is unknown).
    """
    if image.mode.startswith(("I", "F")):
        is_16_bit = image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")
        shades = _from_16_bit(image) if is_16_bit else _from_extremes(image)
        return shades.convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if image.format in ALPHA_OFTEN_LEFT_AT_0 and rgba.getchannel("A").getextrema() == (0, 0):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    bits = 12 if _tag(image, BITSPERSAMPLE) == (12,) else 16
    values = image.convert("I")
    shades = values.point(lambda value: value * (1 / 2 ** (bits - 8))).convert("L")
    if (clear := image.info.get("transparency")) is not None:
        shades.paste(255, mask=values.point([255 * (value == clear) for value in range(1 << 16)], "L"))
    return _white_is_light(image, shades)


def _from_extremes(image: Image.Image) -> Image.Image:
    values = image.convert("F")
    low, high = values.getextrema()
    if not (isinstance(low, float) and isinstance(high, float) and math.isfinite(low) and math.isfinite(high)):
        raise ImageFailure("unreadable", "the image has float pixels that are not finite")
    if low >= 0 and high <= 255 and image.mode == "I":
        low, high = 0.0, 255.0
    scale = 255 / (high - low) if high > low else 0
    return _white_is_light(image, values.point(lambda value: value * scale - low * scale).convert("L"))


def _white_is_light(image: Image.Image, shades: Image.Image) -> Image.Image:
    """Inverts the shades of a TIFF in which 0 is white: Pillow does so only up to 8 bit."""
    return ImageOps.invert(shades) if _tag(image, PHOTOMETRIC_INTERPRETATION) == 0 else shades


def _tag(image: Image.Image, tag: int) -> object:
    return image.tag_v2.get(tag) if isinstance(image, TiffImageFile) else None
