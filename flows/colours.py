"""Decoded pixels of any mode → 8-bit RGB."""

import math

from PIL import Image

from flows.errors import ImageFailure


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of the first frame, without what `convert("RGB")` alone gets wrong.

    Alpha is laid on white (`convert` shows the colours hidden under it), 16-bit is scaled (`convert` clips it to
    white), 32-bit and float are stretched from their own extremes (no other range is known).
    """
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        low, high = image.convert("F").getextrema()
        if not (isinstance(low, float) and isinstance(high, float) and math.isfinite(low) and math.isfinite(high)):
            raise ImageFailure("unreadable", "float pixels that are not finite")
        if low >= 0 and high <= 255 and image.mode == "I":
            low, high = 0.0, 255.0
        scale = 255 / (high - low) if high > low else 0
        return image.convert("F").point(lambda value: value * scale - low * scale).convert("L").convert("RGB")
    return image.convert("RGB")
