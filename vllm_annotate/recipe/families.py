"""Model families: the coordinate space and the keys in which each writes boxes."""

import re
from dataclasses import dataclass
from typing import Literal

from vllm_annotate.errors import UsageError

# How a prompt describes each space. A model is least accurate in a space that it was not trained on.
SPACES = {
    "pixels": {
        "en": "in absolute pixel coordinates of the image",
        "zh": "使用图片的绝对像素坐标",
    },
    "thousandths": {
        "en": "as integers from 0 to 1000, relative to the width and height of the image",
        "zh": "使用相对于图片宽和高、范围为 0 到 1000 的整数坐标",
    },
    "999ths": {
        "en": "as integers from 0 to 999, relative to the width and height of the image",
        "zh": "使用相对于图片宽和高、范围为 0 到 999 的整数坐标",
    },
    "unit": {
        "en": "as decimal numbers from 0 to 1, relative to the width and height of the image",
        "zh": "使用相对于图片宽和高、范围为 0 到 1 的小数坐标",
    },
}
DENOMINATORS = {"thousandths": 1000, "999ths": 999, "unit": 1}

FamilyName = Literal[
    "auto", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "glm-v", "minicpm-v", "deepseek-vl2", "kimi-vl",
    "gemini", "thousandths",
]  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How a family of models writes boxes."""

    name: FamilyName
    served_as: str  # regular expression for the lower-case name of a served model
    space: Literal["pixels", "thousandths", "999ths", "unit"]
    box_key: str = "bbox_2d"
    name_key: str = "label"
    y_first: bool = False  # [y1, x1, y2, x2]
    factor: int = 28  # patch × merge of Qwen's image processors; other families accept any size
    grid: bool = False  # the server resizes images to multiples of `factor`, as Qwen's image processors do

    def denominators(self, sent_width: int, sent_height: int) -> tuple[float, float]:
        """Returns the divisors that turn x and y into shares of the image: the sent image's size, or a constant."""
        if self.space == "pixels":
            return sent_width, sent_height
        return DENOMINATORS[self.space], DENOMINATORS[self.space]


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("qwen2-vl", r"qwen-?2-?vl", "thousandths", grid=True),
        Family("qwen2.5-vl", r"qwen-?2\.5-?vl|tiny-grounder", "pixels", grid=True),
        Family("qwen3-vl", r"qwen-?3-?vl|qwen-?3\.5", "thousandths", factor=32, grid=True),
        Family("internvl", r"intern-?vl|intern-?s1", "thousandths", "bbox"),
        Family("glm-v", r"glm-?4\.\d+v", "thousandths"),
        Family("minicpm-v", r"minicpm-?[vo]", "thousandths", "bbox"),
        Family("deepseek-vl2", r"deepseek-?vl-?2", "999ths", "bbox"),
        Family("kimi-vl", r"kimi-?vl", "unit", "bbox"),
        Family("gemini", r"gemini", "thousandths", "box_2d", y_first=True),
        Family("thousandths", r"(?!)", "thousandths"),
    )
}


def names_family(name: FamilyName, model: str) -> bool:
    """Whether the name, or that of the served model, identifies a family."""
    return name != "auto" or len(_served_as(model)) == 1


def _served_as(model: str) -> list[Family]:
    return [family for family in FAMILIES.values() if re.search(family.served_as, model.lower().replace("_", "-"))]


def resolve_family(name: FamilyName, model: str) -> Family:
    """Returns the family of that name; for `auto`, the one that matches the served model's name.

    Raises UsageError if none or several match: a wrong guess would put every box in a wrong place.
    """
    if name != "auto":
        return FAMILIES[name]
    found = _served_as(model)
    if len(found) == 1:
        return found[0]
    raise UsageError(not_named(model))


def not_named(model: str) -> str:
    """The message for a served model whose name does not identify its family."""
    return (
        f"the name of the served model, {model!r}, does not identify its family, which decides the space of its boxes: "
        f"set the recipe's family (in the block, or `family: …` in the --recipe file) to one of {', '.join(FAMILIES)}"
    )
