"""An opened image, turned the way viewers show it."""

from contextlib import suppress
from dataclasses import dataclass

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vllm_annotate.images.colours import decoded, to_rgb

# EXIF orientation (tag 274) → what turns the stored image upright.
ORIENTATION_TAG = 274
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}  # width and height change places


@dataclass(frozen=True)
class Upright:
    """An image and what is still to be done to its pixels. A JPEG may not have been decoded yet."""

    image: ImageFile.ImageFile
    turn: Image.Transpose | None
    width: int  # of the upright image, pixels
    height: int

    def resized(self, size: tuple[int, int]) -> Image.Image:
        """The upright image in 8-bit RGB, as (width, height) `size`."""
        stored_size = size[::-1] if self.turn in SIDEWAYS else size
        # Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, never below the target: at 12 MP 104 ms, not 512.
        self.image.draft(None, stored_size)
        self.image.load()
        pixels = to_rgb(self.image)
        if pixels.size != stored_size:
            pixels = pixels.resize(stored_size, Image.Resampling.BICUBIC)
        return pixels if self.turn is None else pixels.transpose(self.turn)


def upright(image: ImageFile.ImageFile) -> Upright:
    """What turns the image upright, and how large it is then.

    A JPEG's header tells. All others are decoded first: Pillow turns a TIFF while it decodes it, and a PNG may have its
    orientation at its end.
    """
    if isinstance(image, TiffImageFile):
        _drop_other_tags(image)
    if not isinstance(image, JpegImageFile):
        image = decoded(image)
    turn = _turn(image)
    return Upright(image, turn, *(image.size[::-1] if turn in SIDEWAYS else image.size))


def _drop_other_tags(image: TiffImageFile) -> None:
    """Leaves Pillow nothing but the orientation to read while it decodes; what else is broken would fail the image."""
    with suppress(Exception):  # it raises once, and gives what it could read after that
        image.getexif()
    exif = image.getexif()
    for tag in set(exif) - {ORIENTATION_TAG}:
        del exif[tag]
    image.info.pop("xmp", None)


def _turn(image: ImageFile.ImageFile) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF in a readable image: viewers show it as stored, and so do we
        return None
