"""Writes the stand-in's answers, in Qwen2.5-VL's native format."""

import json

from PIL import Image

from stand_in.vision import Shape, find_shapes
from vllm_annotate.images.prepare import smart_resize
from vllm_annotate.recipe.image_budget import ImageBudget

CHINESE = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "orange": "橙色",
    "circle": "圆形", "square": "正方形", "triangle": "三角形",
}  # fmt: skip


def describe(image: Image.Image, budget: ImageBudget, *, chinese: bool) -> str:
    """The answer for an image: rationale and boxes, in pixels of the image as the model's processor resizes it."""
    width, height = smart_resize(image.width, image.height, budget)
    across, down = width / image.width, height / image.height
    shapes = find_shapes(image)
    objects = [
        {
            "bbox_2d": [
                round(shape.box[0] * across), round(shape.box[1] * down),
                round(shape.box[2] * across), round(shape.box[3] * down),
            ],
            "label": _label(shape, chinese=chinese),
        }
        for shape in shapes
    ]  # fmt: skip
    return json.dumps({"rationale": _rationale(shapes, chinese=chinese), "objects": objects}, ensure_ascii=False)


def _label(shape: Shape, *, chinese: bool) -> str:
    return CHINESE[shape.colour] + CHINESE[shape.form] if chinese else f"{shape.colour} {shape.form}"


def _rationale(shapes: list[Shape], *, chinese: bool) -> str:
    names = [_label(shape, chinese=chinese) for shape in shapes]
    if chinese:
        return "从左到右依次为:" + "、".join(names) + "。" if names else "画面中没有已知的形状。"
    return "From left to right: " + ", ".join(names) + "." if names else "There is no known shape in the image."
