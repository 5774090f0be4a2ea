"""Draws seeded scenes of coloured shapes whose boxes are known."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pybase64
from PIL import Image, ImageDraw

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]
Form = Literal["circle", "square", "triangle"]

FORMS: tuple[Form, ...] = ("circle", "square", "triangle")
COLOURS = {
    "red": (215, 35, 40),
    "green": (35, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (245, 220, 40),
    "purple": (135, 45, 170),
    "orange": (250, 135, 20),
}
BACKGROUNDS = ((245, 245, 240), (225, 230, 235), (205, 200, 195), (255, 255, 255))
CHINESE = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "orange": "橙色",
    "circle": "圆形", "square": "正方形", "triangle": "三角形",
}  # fmt: skip
GAP = 8  # pixels between shapes: they never touch
MOST_TRIES = 200
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Shape:
    """A drawn shape; `box` is (x1, y1, x2, y2) in pixels, x2 and y2 exclusive."""

    colour: str
    form: Form
    box: Box

    def name(self, *, chinese: bool) -> str:
        """`red circle`, `红色圆形`."""
        return CHINESE[self.colour] + CHINESE[self.form] if chinese else f"{self.colour} {self.form}"


@dataclass(frozen=True)
class Drawing:
    """An image of shapes, left to right."""

    image: Image.Image
    shapes: Sequence[Shape]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.image.size

    def url(self) -> bytes:
        """The drawing as a JPEG, in a data URL."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return b"data:image/jpeg;base64," + pybase64.b64encode(buffer.getvalue())


def place(
    rng: random.Random, size: tuple[int, int], count: int, sides: tuple[float, float] = (0.15, 0.45)
) -> list[Shape]:
    """Places `count` (at most 6) shapes, each of another colour; their sides are shares of the shorter side.

    In a small image that has no room for all of them, fewer.
    """
    for _ in range(MOST_TRIES):
        shapes: list[Shape] = []
        for colour in rng.sample(sorted(COLOURS), count):
            if (box := _free_box(rng, size, sides, [shape.box for shape in shapes])) is None:
                break
            shapes.append(Shape(colour, rng.choice(FORMS), box))
        if len(shapes) == count:
            break
    return sorted(shapes, key=lambda shape: shape.box)


def draw(size: tuple[int, int], shapes: Sequence[Shape], background: Colour) -> Drawing:
    """Draws shapes on a plain background."""
    image = Image.new("RGB", size, background)
    canvas = ImageDraw.Draw(image)
    for shape in shapes:
        _draw_shape(canvas, shape)
    return Drawing(image, shapes)


def _free_box(
    rng: random.Random, size: tuple[int, int], sides: tuple[float, float], taken: Sequence[Box]
) -> Box | None:
    """A box that touches none of those that are taken; None if none was found."""
    width, height = size
    smallest, largest = sides
    for _ in range(MOST_TRIES):
        side = int(rng.uniform(smallest, largest) * min(size))
        x, y = rng.randint(1, width - side - 1), rng.randint(1, height - side - 1)
        if all(
            x + side + GAP <= x1 or x2 + GAP <= x or y + side + GAP <= y1 or y2 + GAP <= y for x1, y1, x2, y2 in taken
        ):
            return (x, y, x + side, y + side)
        largest = max(smallest, largest * 0.97)
    return None


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: Shape) -> None:
    x1, y1, x2, y2 = shape.box[0], shape.box[1], shape.box[2] - 1, shape.box[3] - 1  # Pillow's corners are inclusive
    colour = COLOURS[shape.colour]
    if shape.form == "circle":
        canvas.ellipse((x1, y1, x2, y2), fill=colour)
    elif shape.form == "square":
        canvas.rectangle((x1, y1, x2, y2), fill=colour)
    else:
        canvas.polygon([((x1 + x2) / 2, y1), (x2, y2), (x1, y2)], fill=colour)
