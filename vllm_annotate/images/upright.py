"""Images, turned the way viewers show them."""

from contextlib import suppress
from dataclasses import dataclass

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vllm_annotate.images.colours import decoded, to_rgb

# EXIF orientation (tag 274) → the transposition that makes the stored image upright.
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
SIDEWAYS = {UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}  # these swap width and height


@dataclass(frozen=True)
class Upright:
    """An image and the turn that its pixels still need. A JPEG may not be decoded yet."""

    image: ImageFile.ImageFile
    turn: Image.Transpose | None
    width: int  # of the upright image, pixels
    height: int

    def resized(self, size: tuple[int, int]) -> Image.Image:
        """Returns the upright image in 8-bit RGB, resized to `size` (width, height)."""
        stored_size = size[::-1] if self.turn in SIDEWAYS else size
        # Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, never below the target: at 12 MP 104 ms, not 512.
        self.image.draft(None, stored_size)
        self.image.load()
        pixels = to_rgb(self.image)
        if pixels.size != stored_size:
            pixels = pixels.resize(stored_size, Image.Resampling.BICUBIC)
        return pixels if self.turn is None else pixels.transpose(self.turn)


def upright(image: ImageFile.ImageFile) -> Upright:
    """Returns the image with the turn that it needs and its upright size.

    For a JPEG the header is enough. All others are decoded first: Pillow turns a TIFF while decoding, and a PNG may
    have its orientation at the end.
    """
    if isinstance(image, TiffImageFile):
        _drop_other_tags(image)
    if not isinstance(image, JpegImageFile):
        image = decoded(image)
    turn = _turn(image)
    return Upright(image, turn, *(image.size[::-1] if turn in SIDEWAYS else image.size))


def _drop_other_tags(image: TiffImageFile) -> None:
    """Removes all tags but the orientation: Pillow reads them while decoding, and a broken one would fail the image."""
    with suppress(Exception):  # the first call raises, the next returns what could be read
        image.getexif()
    exif = image.getexif()
    for tag in set(exif) - {ORIENTATION_TAG}:
        del exif[tag]
    image.info.pop("xmp", None)


def _turn(image: ImageFile.ImageFile) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF in a readable image: shown as stored, as viewers do
        return None
