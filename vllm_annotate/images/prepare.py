"""An image file → what is sent of it: its own bytes without metadata, or an upright JPEG of the right size."""

import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import pybase64
from PIL import Image, ImageFile, UnidentifiedImageError

from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.fast import fast_jpeg
from vllm_annotate.images.files import read_image
from vllm_annotate.images.hints import what_it_is
from vllm_annotate.images.jpeg import plain_jpeg
from vllm_annotate.images.metadata import readings
from vllm_annotate.images.upright import Upright, upright
from vllm_annotate.recipe.image_budget import ImageBudget
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.shortage import is_shortage

Result = TypeVar("Result")

MAX_PIXELS = 89_478_485  # Pillow warns above this, and raises above twice this

# An explicit list: Pillow's includes EPS, for which it runs Ghostscript on untrusted files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "TGA")

MAX_ASPECT = 200  # of Qwen's image processor


@dataclass(frozen=True)
class PreparedImage:
    """What is sent, and the two sizes that map its boxes to the file."""

    content: bytes
    width: int  # of the upright image, pixels
    height: int
    sent_width: int  # of what the model sees, pixels: the space in which it answers
    sent_height: int
    sent_as: Literal["original", "jpeg"] = "jpeg"  # the file's own bytes, or a JPEG made of them
    media_type: str = "image/jpeg"

    def url(self) -> bytes:
        """Returns the image as a data URL for a request, ASCII without quotes."""
        return b"data:%b;base64,%b" % (self.media_type.encode(), pybase64.b64encode(self.content))


def smart_resize(width: int, height: int, budget: ImageBudget) -> tuple[int, int]:
    """Returns (width, height) as in Qwen's image processor: multiples of `factor` within the pixel budget.

    Follows `smart_resize` in transformers' `image_processing_qwen2_vl.py`, including banker's rounding, so that a
    second pass on the server changes nothing. Raises ImageFailure above an aspect ratio of 200, also if it is only
    exceeded by rounding to the factor: the server would refuse that image.
    """
    factor = budget.factor
    size = f"{width}×{height} pixels"
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageFailure("unreadable", f"{size}: the aspect ratio is over {MAX_ASPECT}; crop the image")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > budget.max_pixels:
        scale = math.sqrt(width * height / budget.max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < budget.min_pixels:
        scale = math.sqrt(budget.min_pixels / (width * height))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    if max(new_width, new_height) > MAX_ASPECT * min(new_width, new_height):
        resized = f"{size}, resized to {new_width}×{new_height}"
        raise ImageFailure("unreadable", f"{resized}: the aspect ratio is over {MAX_ASPECT}; crop the image")
    return new_width, new_height


def prepare(image_root: ImageRoot, image_path: str, budget: ImageBudget, *, as_they_are: bool = False) -> PreparedImage:
    """Reads, checks, turns and resizes one image. CPU-bound: call it off the event loop.

    With `as_they_are`, a JPEG within the budget keeps its size, as the server resizes it to the same grid. Raises
    ImageFailure of kind missing, outside_root, unreadable or too_large.
    """
    _set_up_pillow()
    data = read_image(image_root, image_path)
    if (original := _original(data, budget, as_they_are=as_they_are)) is not None:
        return original
    return _decoded(data, lambda image, content: _converted(image, content, budget))


def _original(data: bytes, budget: ImageBudget, *, as_they_are: bool) -> PreparedImage | None:
    """Returns a file that can be sent without decoding it; else None."""

    def can_be_sent(width: int, height: int) -> bool:
        if width * height > MAX_PIXELS:
            return False
        if as_they_are:
            return is_within(width, height, budget)
        return smart_resize(width, height, budget) == (width, height)

    jpeg = plain_jpeg(data, can_be_sent)
    if jpeg is None:
        return None
    size = (jpeg.width, jpeg.height)
    return PreparedImage(jpeg.content, *size, *_seen(size, budget), sent_as="original")


def is_within(width: int, height: int, budget: ImageBudget) -> bool:
    """Whether both sides are only rounded to the grid, and the image not scaled to the limits of its budget.

    Raises ImageFailure as `smart_resize` does.
    """
    factor = budget.factor
    rounded = (round(width / factor) * factor, round(height / factor) * factor)
    # Earlier image processors refuse images with a side under the factor.
    return min(width, height) >= factor and smart_resize(width, height, budget) == rounded


def _seen(sent: tuple[int, int], budget: ImageBudget) -> tuple[int, int]:
    """Returns the size that the model sees of an image of this size."""
    return smart_resize(*sent, budget) if budget.grid else sent


def thumbnail(
    image_root: ImageRoot, image_path: str, side: int, max_bytes: int = 20_000
) -> tuple[bytes, tuple[int, int]]:
    """Returns a JPEG of the upright image, no side over `side` pixels, and its size.

    Lowers the quality to stay within `max_bytes`. Raises ImageFailure as `prepare` does.
    """
    _set_up_pillow()
    small = _decoded(read_image(image_root, image_path), lambda image, _: _reduced(image, side))
    for quality in (75, 50, 25, 5):
        jpeg = _jpeg(small, quality)
        if len(jpeg) <= max_bytes:
            break
    return jpeg, small.size


def upright_size(image_root: ImageRoot, image_path: str) -> tuple[int, int]:
    """Returns width and height of the upright image. Raises ImageFailure as `prepare` does."""
    _set_up_pillow()
    shown = _decoded(read_image(image_root, image_path), lambda image, _: _measured(image))
    return shown.width, shown.height


def _measured(image: ImageFile.ImageFile) -> Upright:
    _check_pixels(image)
    return upright(image)


def _reduced(image: ImageFile.ImageFile, side: int) -> Image.Image:
    _check_pixels(image)
    shown = upright(image)
    scale = min(1, side / max(shown.width, shown.height))
    return shown.resized((max(1, round(shown.width * scale)), max(1, round(shown.height * scale))))


@cache
def _set_up_pillow() -> None:
    Image.init()  # registers all formats; `open` registers only some, and fails on other names
    # Images that Pillow warns about decode anyway, raise later, or are checked here: no noise in a large run.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _decoded(data: bytes, use: Callable[[ImageFile.ImageFile, bytes], Result]) -> Result:
    """Opens an image and returns what `use` makes of it and of its content. Errors become an ImageFailure."""
    errors: list[Exception] = []
    for content in readings(data):
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return use(image, content)
        except ImageFailure:
            raise
        except Exception as error:  # decoders can raise anything on hostile bytes; no image may stop a run
            if is_shortage(error):
                raise
            errors.append(error)
            if isinstance(error, Image.DecompressionBombError):
                break
    raise _failure(errors[0], data)


def _failure(error: Exception, data: bytes) -> ImageFailure:
    if isinstance(error, Image.DecompressionBombError):
        found = re.search(r"\d+ pixels|\d+×\d+", str(error))  # Pillow's message names another limit, and an attack
        size = found[0] if found else "the image"
        return ImageFailure("too_large", f"{size} is over {MAX_PIXELS:,} pixels: shrink the image")
    if isinstance(error, UnidentifiedImageError):
        what = what_it_is(data) or "not an image that Pillow supports"
        return ImageFailure("unreadable", f"the file ({len(data)} bytes) is {what}")
    return ImageFailure("unreadable", f"cannot be decoded: {str(error) or repr(error):.300}")


def _check_pixels(image: ImageFile.ImageFile) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width}×{image.height}")


def _converted(image: ImageFile.ImageFile, content: bytes, budget: ImageBudget) -> PreparedImage:
    _check_pixels(image)
    shown = upright(image)
    sent = smart_resize(shown.width, shown.height, budget)
    jpeg = fast_jpeg(content, shown, sent, budget.jpeg_quality)
    if jpeg is None:
        jpeg = _jpeg(shown.resized(sent), budget.jpeg_quality)
    return PreparedImage(jpeg, shown.width, shown.height, *sent)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, comment=b"")  # Pillow keeps comments, and no other metadata
    return buffer.getvalue()
