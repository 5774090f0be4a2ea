"""An image file → a checked, upright JPEG of exactly the size the model will see."""

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pybase64
from PIL import Image, ImageFile, UnidentifiedImageError

from flows.errors import ImageFailure
from flows.image_files import MAX_FILE_BYTES, opened_inside, read_image
from flows.storage.locations import ImageRoot

# What Pillow warns about decodes all the same, raises later, or is checked here: no news in a run of a million files.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
MAX_PIXELS = 89_478_485  # Pillow's own limit, at which it warns; twice that it raises

# What photographs and drawings come in. Named, because Pillow's list includes EPS, for which it runs Ghostscript on
# whatever the file says.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "TGA")
Image.init()  # registers them all; `open` alone registers some, and fails on a name it has not met

MOST_ASPECT = 200  # that Qwen's image processor takes

JPEG_END = b"\xff\xd9"
END_BYTES = 64  # in which it stands, padding after it included

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


@dataclass(frozen=True)
class ImageBudget:
    """How large an image the model is to see."""

    min_pixels: int
    max_pixels: int
    factor: int = 28  # patch × merge: 28 for Qwen2-VL and Qwen2.5-VL
    jpeg_quality: int = 90


@dataclass(frozen=True)
class PreparedImage:
    """What is sent, and the two sizes that tie its boxes to the file."""

    jpeg: bytes  # empty where the server reads the file itself
    width: int  # of the upright image, pixels
    height: int
    sent_width: int  # of the JPEG, pixels: the space the model answers in
    sent_height: int
    file: str = ""  # the real path, where the server reads it

    def url(self) -> bytes:
        """What stands for the image in a request: file:///… or data:…, ASCII without quotes."""
        if self.file:
            return Path(self.file).as_uri().encode()
        return b"data:image/jpeg;base64," + pybase64.b64encode(self.jpeg)


def smart_resize(width: int, height: int, budget: ImageBudget) -> tuple[int, int]:
    """(width, height) as Qwen's image processor would resize to: multiples of `factor` within the pixel budget.

    Follows `smart_resize` of transformers' `image_processing_qwen2_vl.py`, banker's rounding included, so that a
    second pass on the server changes nothing. Raises ImageFailure above an aspect ratio of 200, as it does; rounding
    to the factor can take a long image there, which the server would refuse.
    """
    factor = budget.factor
    size = f"{width}×{height} pixels"
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise ImageFailure("unreadable", f"{size}: the aspect ratio is over {MOST_ASPECT}, crop the image")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > budget.max_pixels:
        scale = math.sqrt(width * height / budget.max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < budget.min_pixels:
        scale = math.sqrt(budget.min_pixels / (width * height))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    if max(new_width, new_height) > MOST_ASPECT * min(new_width, new_height):
        resized = f"{size}, resized to {new_width}×{new_height}"
        raise ImageFailure("unreadable", f"{resized}: the aspect ratio is over {MOST_ASPECT}, crop the image")
    return new_width, new_height


def prepare(
    image_root: ImageRoot, image_path: str, budget: ImageBudget, *, server_reads: bool = False
) -> PreparedImage:
    """Reads, checks, turns and resizes one image; CPU-bound, so call it off the event loop.

    Where the server reads files of the image root itself, those that need no change are not read here. Raises
    ImageFailure of kind missing, outside_root, unreadable or too_large.
    """
    if server_reads and isinstance(image_root, Path):
        with suppress(Exception):  # whatever is wrong with it is found out, and told, below
            if (named := _prepare_by_name(image_root, image_path, budget)) is not None:
                return named
    with _opened(image_root, image_path) as (image, data):
        return _prepare(image, data, budget)


def thumbnail(
    image_root: ImageRoot, image_path: str, side: int, max_bytes: int = 20_000
) -> tuple[bytes, tuple[int, int]]:
    """A JPEG of the upright image and its size, no side over `side` pixels; coarser where it is over `max_bytes`.

    Raises ImageFailure as `prepare` does.
    """
    with _opened(image_root, image_path) as (image, _):
        _check_pixels(image)
        method = UPRIGHT.get(_orientation(image))
        image.draft(None, (side, side))
        image.load()
        small = to_rgb(image)
        small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2)
        small = small if method is None else small.transpose(method)
    for quality in (75, 50, 25, 5):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= max_bytes:
            break
    return buffer.getvalue(), small.size


@contextmanager
def _opened(image_root: ImageRoot, image_path: str) -> Iterator[tuple[ImageFile.ImageFile, bytes]]:
    """An image and its file's bytes. What goes wrong with it while the context lasts is an ImageFailure."""
    data = read_image(image_root, image_path)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image, data
    except Image.DecompressionBombError as error:
        raise ImageFailure("too_large", f"{error}: shrink the image") from None
    except UnidentifiedImageError:
        raise ImageFailure("unreadable", f"{len(data)} bytes that are no image Pillow knows") from None
    except ImageFailure:
        raise
    except Exception as error:  # decoders raise whatever hostile bytes lead them to; no image may stop a run
        raise ImageFailure("unreadable", f"cannot be decoded: {str(error) or repr(error):.300}") from None


def _prepare_by_name(image_root: Path, image_path: str, budget: ImageBudget) -> PreparedImage | None:
    """The image by its header and its end, if it can be sent as it is."""
    with (
        opened_inside(image_root, image_path) as opened,
        os.fdopen(opened.descriptor, "rb", closefd=False) as file,
        Image.open(file, formats=FORMATS) as image,
    ):
        _check_pixels(image)
        sent = smart_resize(*image.size, budget)
        file.seek(max(0, opened.size - END_BYTES))
        if opened.size > MAX_FILE_BYTES or not _can_be_sent(image, sent) or not _is_whole(file.read()):
            return None
        return PreparedImage(b"", *image.size, *sent, file=opened.real)


def _check_pixels(image: ImageFile.ImageFile) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width}×{image.height} is over {MAX_PIXELS} pixels")


def _prepare(image: ImageFile.ImageFile, data: bytes, budget: ImageBudget) -> PreparedImage:
    _check_pixels(image)
    orientation = _orientation(image)
    turned = orientation >= 5
    stored_size = image.size
    width, height = stored_size[::-1] if turned else stored_size
    sent_width, sent_height = smart_resize(width, height, budget)
    stored_target = (sent_height, sent_width) if turned else (sent_width, sent_height)
    can_be_sent = _can_be_sent(image, stored_target)
    if not (can_be_sent and _is_whole(data)):
        # Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, never below the target: at 12 MP 104 ms, not 512.
        image.draft(None, stored_target)
        image.load()
    if can_be_sent:
        return PreparedImage(data, width, height, sent_width, sent_height)
    pixels = to_rgb(image)
    if pixels.size != stored_target:
        pixels = pixels.resize(stored_target, Image.Resampling.BICUBIC)
    if orientation in UPRIGHT:
        pixels = pixels.transpose(UPRIGHT[orientation])
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=budget.jpeg_quality, exif=b"")
    return PreparedImage(buffer.getvalue(), width, height, sent_width, sent_height)


def _can_be_sent(image: ImageFile.ImageFile, size: tuple[int, int]) -> bool:
    """Whether nothing need be changed, by the header. EXIF must: where a picture was taken is nobody's business."""
    as_asked = image.size == size and image.format == "JPEG" and image.mode == "RGB"
    return as_asked and "exif" not in image.info and _orientation(image) == 1


def _is_whole(jpeg: bytes) -> bool:
    """Whether a JPEG ends as one does, which costs nothing to see; what decodes all the same may end otherwise."""
    return jpeg[-END_BYTES:].rstrip(b"\0\r\n ").endswith(JPEG_END)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF in a readable image: viewers show it as stored, and so do we
        return 1
    return orientation if orientation in UPRIGHT else 1


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
