"""The size of the images that the model sees."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageBudget:
    """Limits on the size of the image that the model sees."""

    min_pixels: int
    max_pixels: int
    factor: int = 28  # patch × merge: 28 for Qwen2-VL and Qwen2.5-VL
    jpeg_quality: int = 90
    grid: bool = True  # the server resizes images to multiples of the factor, as `smart_resize` does
