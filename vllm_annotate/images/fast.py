"""JPEGs that must be turned or resized, by simplejpeg and OpenCV if `vllm-annotate[fast]` is installed.

Pillow reads the header before, and decides whatever these do not decode without a complaint.
"""

from functools import cache
from typing import Any

from PIL import Image

from vllm_annotate.images.upright import SIDEWAYS, Upright

# Whether rows become columns; then the steps down and across.
TURNS = {
    Image.Transpose.FLIP_LEFT_RIGHT: (False, 1, -1),
    Image.Transpose.FLIP_TOP_BOTTOM: (False, -1, 1),
    Image.Transpose.ROTATE_180: (False, -1, -1),
    Image.Transpose.TRANSPOSE: (True, 1, 1),
    Image.Transpose.ROTATE_90: (True, -1, 1),
    Image.Transpose.ROTATE_270: (True, 1, -1),
    Image.Transpose.TRANSVERSE: (True, -1, -1),
}


def fast_jpeg(content: bytes, shown: Upright, size: tuple[int, int], quality: int) -> bytes | None:
    """Returns the upright image as a JPEG of `size` (width, height); None if Pillow must make it."""
    if shown.image.format not in ("JPEG", "MPO") or shown.image.mode not in ("RGB", "L") or not _are_installed():
        return None
    import simplejpeg

    width, height = size[::-1] if shown.turn in SIDEWAYS else size
    try:
        # Decoded at 1/2, 1/4 or 1/8 of its size where that suffices. Strict: damaged pixels are Pillow's to judge.
        pixels = simplejpeg.decode_jpeg(content, "RGB", min_height=height, min_width=width, min_factor=1, strict=True)
        upright = _turned(_resized(pixels, width, height), shown.turn)
        return bytes(simplejpeg.encode_jpeg(upright, quality, "RGB", "420"))
    except MemoryError:
        raise
    except Exception:  # each library has its own errors
        return None


@cache
def _are_installed() -> bool:
    try:
        import cv2
        import simplejpeg  # noqa: F401
    except ImportError:
        return False
    cv2.setNumThreads(1)  # images are prepared in as many threads as there are cores
    return True


def _resized(pixels: Any, width: int, height: int) -> Any:
    import cv2

    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _turned(pixels: Any, turn: Image.Transpose | None) -> Any:
    import numpy as np

    if turn is None:
        return pixels
    swap, down, across = TURNS[turn]
    return np.ascontiguousarray((pixels.swapaxes(0, 1) if swap else pixels)[::down, ::across])
