"""Writes the stand-in's answers, as a model of the processor's family does."""

import json
from collections.abc import Callable

from PIL import Image

from stand_in.processor import Processor
from stand_in.vision import find_shapes
from vllm_annotate.proof.drawings import Shape

CANNED = '{"rationale": "A red circle.", "objects": [{"bbox_2d": [28, 28, 196, 224], "label": "red circle"}]}'
UNIT_DIGITS = 4
See = Callable[[Image.Image], list[Shape]]


def describe(
    image: Image.Image, processor: Processor, *, chinese: bool, shift: float = 0.0, see: See = find_shapes
) -> str:
    """The answer for an image: rationale and boxes in the family's space, keys and order of axes.

    `shift` is how far the boxes are moved right and down, as a share of the image; they end at its edge.
    `see` finds the shapes.
    """
    family, shapes = processor.family, see(image)
    across, down = family.denominators(*processor.size(image.width, image.height))
    digits = UNIT_DIGITS if family.space == "unit" else None

    def box(shape: Shape) -> list[float]:
        shares = [side / of for side, of in zip(shape.box, image.size * 2, strict=True)]
        x1, y1, x2, y2 = (min(1.0, share + shift) for share in shares)
        corners = [x1 * across, y1 * down, x2 * across, y2 * down]
        if family.y_first:
            corners = [corners[1], corners[0], corners[3], corners[2]]
        return [round(corner, digits) for corner in corners]

    objects = [
        {family.box_key: box(shape), family.name_key: shape.name(chinese=chinese)} for shape in shapes
    ]  # fmt: skip
    return json.dumps({"rationale": _rationale(shapes, chinese=chinese), "objects": objects}, ensure_ascii=False)


def _rationale(shapes: list[Shape], *, chinese: bool) -> str:
    names = [shape.name(chinese=chinese) for shape in shapes]
    if chinese:
        return "从左到右依次为:" + "、".join(names) + "。" if names else "画面中没有已知的形状。"
    return "From left to right: " + ", ".join(names) + "." if names else "There is no known shape in the image."
