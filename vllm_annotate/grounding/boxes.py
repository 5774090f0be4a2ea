"""A box in any notation that models use → four numbers, in the order of the family."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?")
NUMBER_TEXT = re.compile(rf"\s*{NUMBER.pattern}\s*")
N, COMMA, OPEN, CLOSE = NUMBER.pattern, r"\s{0,9}[,，、]\s{0,9}", r"[\[(（]\s{0,9}", r"\s{0,9}[\])）]"
# [a, b, c, d], (a, b, c, d), (a,b),(c,d) or [[a, b], [c, d]]
QUAD = re.compile(f"{OPEN}{N}{COMMA}{N}(?:{COMMA}|{CLOSE}{COMMA}{OPEN}){N}{COMMA}{N}{CLOSE}")
TAG = re.compile(r"</?[\w|]{1,40}>")
TOKEN = re.compile(r"</?(?:ref|box|quad)>|<\|/?\w{1,40}\|>")  # of models; other tags in a name may be what a sign says
AROUND = r"[\s\[\](){}（）,，、;；]"  # what may stand around the numbers of a box that is written as text
BETWEEN = re.compile(f"{AROUND}*")
BOX_TEXT = re.compile(f"{AROUND}{{0,20}}{N}(?:{AROUND}{{1,20}}{N}){{3}}{AROUND}{{0,20}}")
MAX_BOX_TEXT = 10_000

BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box")
OTHER_BOX_KEYS = ("bounding_box", "bbox2d", "box2d", "coordinates", "坐标框", "边界框", "坐标", "bboxes", "boxes")
CORNERS = (  # the names of left, top, right and bottom
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
SIZES = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
    ("xmin", "ymin", "width", "height"),
)
POINTS = (
    ("min", "max"),
    ("top_left", "bottom_right"),
    ("topleft", "bottomright"),
    ("左上角", "右下角"),
    ("左上", "右下"),
)


class RawBox(NamedTuple):
    """Four numbers as a model wrote them."""

    numbers: list[float]
    by_name: bool = False  # each has its name: [x1, y1, x2, y2], also in a family that writes y first
    sized: bool = False  # it was x, y, width and height


def raw_boxes(value: Any, depth: int = 0) -> list[RawBox | None]:
    """Returns the boxes that a JSON value describes, None for a malformed one among others; none if it is no box."""
    if isinstance(value, list):
        if (numbers := four_numbers(value)) is not None:
            return [RawBox(numbers)]
        if len(value) == 2 and (box := _between(*value)) is not None:
            return [box]
        if depth > 2 or not value or not all(isinstance(inner, list | dict | str) for inner in value):
            return []
        found = [raw_boxes(inner, depth + 1) for inner in value]
        if any(isinstance(inner, str) and not boxes for inner, boxes in zip(value, found, strict=True)):  # a name
            return []
        return [box for boxes in found for box in boxes or [None]] if any(found) else []
    if isinstance(value, str):
        return _in_text(value)
    return [box] if isinstance(value, dict) and (box := _named(value)) is not None else []


def _in_text(text: str) -> list[RawBox | None]:
    """Returns the boxes of a text that contains nothing else."""
    if len(text) > MAX_BOX_TEXT:
        return []
    text = TAG.sub(" ", text)
    if BOX_TEXT.fullmatch(text):
        return [RawBox([float(number) for number in NUMBER.findall(text)])]
    if not BETWEEN.fullmatch(QUAD.sub("", text)):
        return []
    return [RawBox([float(number) for number in NUMBER.findall(quad[0])]) for quad in QUAD.finditer(text)]


def _named(value: Mapping[str, Any]) -> RawBox | None:
    """Returns the box of an object with a name for each of its numbers, or for two of its corners."""
    fields = {key.lower(): inner for key, inner in value.items()}

    def under(names: tuple[str, ...], read: Callable[[list[Any]], list[float] | None]) -> list[float] | None:
        return read([fields[name] for name in names]) if all(name in fields for name in names) else None

    for names in CORNERS:
        if (numbers := under(names, four_numbers)) is not None:
            return RawBox(numbers, by_name=True)
    for names in SIZES:
        if (numbers := under(names, four_numbers)) is not None:
            x, y, width, height = numbers
            return RawBox([x, y, x + width, y + height], by_name=True, sized=True)
    for first, second in POINTS:
        if first in fields and second in fields:
            return _between(fields[first], fields[second])
    return None


def _between(first: Any, second: Any) -> RawBox | None:
    """Returns the box between two corners."""
    one, other = _point(first), _point(second)
    if one is None or other is None:
        return None
    return RawBox([*one, *other], by_name=isinstance(first, dict) and isinstance(second, dict))


def _point(value: Any) -> list[float] | None:
    if isinstance(value, dict) and {"x", "y"} <= value.keys():
        return _finite([value["x"], value["y"]])
    if isinstance(value, str) and len(value) <= 60:
        numbers = NUMBER.findall(value)
        return [float(n) for n in numbers] if len(numbers) == 2 and BETWEEN.fullmatch(NUMBER.sub("", value)) else None
    return _finite(value) if isinstance(value, list) and len(value) == 2 else None


def four_numbers(values: list[Any]) -> list[float] | None:
    """Returns four finite numbers below 1e9, which may be written as text; else None."""
    if len(values) != 4:
        return None
    if all(type(v) is int for v in values) and max(values) < 1e9 and min(values) > -1e9:  # the usual case, fast
        return values
    return _finite(values)


def _finite(values: list[Any]) -> list[float] | None:
    numbers = [float(v) if isinstance(v, str) and NUMBER_TEXT.fullmatch(v) else v for v in values]
    fine = (isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in numbers)  # NaN fails too
    return numbers if all(fine) else None
