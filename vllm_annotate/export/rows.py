"""A line of an output → an image with its objects. Tolerates what other programs wrote."""

import math
from dataclasses import dataclass, replace
from typing import Any

from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.prepare import upright_size
from vllm_annotate.results.lines import OUTPUT_FIELDS, path_of
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.json_text import json_object

MAX_SIDE = 1_000_000  # pixels; no image is larger, and a broken number may have any size
RUN_FIELDS = OUTPUT_FIELDS.keys()
BROKEN, NO_PATH, NO_ANNOTATION = "broken line", "no image path", "no annotation"
NO_SIZE = "no width and height"
INVALID_BOX, NO_NAME = "invalid box", "no name"


@dataclass(frozen=True)
class Named:
    """A named box: left, top, right and bottom, 0–1000 of the upright image."""

    name: str
    box: tuple[float, float, float, float]

    @property
    def share(self) -> float:
        """The box's share of the image."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top) / 1_000_000


@dataclass(frozen=True)
class Labeled:
    """An annotated image."""

    path: str
    caption: str
    rationale: str
    objects: tuple[Named, ...]
    size: tuple[int, int] | None  # width and height of the upright image, pixels
    flags: tuple[str, ...]
    invalid: tuple[str, ...]  # for each object that cannot be exported, why
    text: str  # the line; empty if it has no columns but those of a run
    # Not in the line: there a column of the same name is the user's own.
    agreement: float | None = None  # of the audit
    reviewed: bool = False  # by a person

    def pixels(self, item: Named) -> list[float]:
        """Returns a box in pixels, left, top, right, bottom, to a hundredth."""
        width, height = self.size or (0, 0)
        left, top, right, bottom = item.box
        return [
            round(value * side / 1000, 2)
            for value, side in ((left, width), (top, height), (right, width), (bottom, height))
        ]

    def measured(self, image_root: ImageRoot | None) -> "Labeled":
        """Returns the row with its size, from the image if the line has none and the image can be read."""
        if self.size is not None or image_root is None:
            return self
        try:
            return replace(self, size=upright_size(image_root, self.path))
        except (ImageFailure, OSError):
            return self


def read_row(line: bytes, *, unparsed: bool = False) -> Labeled | str:
    """Returns the image of a line, or why there is none; with `unparsed`, one without an annotation has no objects."""
    row = json_object(line)
    return BROKEN if row is None else read_fields(row, line, unparsed=unparsed)


def read_fields(row: dict[str, Any], line: bytes, *, unparsed: bool = False) -> Labeled | str:
    """Does the same for a line that was parsed as `row`."""
    path = row.get("image_path")
    if not isinstance(path, str) or "?" in path:  # which may have been half of a character
        path = path_of(line)
    if not path:
        return NO_PATH
    annotations = row.get("annotations") if isinstance(row.get("annotations"), dict) else {}
    objects = row.get("objects", (annotations or {}).get("objects"))
    if row.get("annotations_error") is True or not isinstance(objects, list):
        if not unparsed:
            return NO_ANNOTATION
        objects = []
    read = [_named(item) for item in objects]
    flags = row.get("flags")
    return Labeled(
        path=path,
        caption=_text(row.get("caption")),
        rationale=_text((annotations or {}).get("rationale")),
        objects=tuple(item for item in read if isinstance(item, Named)),
        size=size_of(row.get("width"), row.get("height")),
        flags=tuple(flag for flag in flags if isinstance(flag, str)) if isinstance(flags, list) else (),
        invalid=tuple(why for why in read if isinstance(why, str)),
        text="" if row.keys() <= RUN_FIELDS else line.decode(errors="replace"),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def is_number(value: Any) -> bool:
    """Whether a value is a number that can be a coordinate."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # NaN fails too


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """Returns width and height if an image can have them."""
    if type(width) is int and type(height) is int and 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE:
        return width, height
    return None


def _named(item: Any) -> Named | str:
    """Returns an object, or why it cannot be exported. White space in names is collapsed: labels are compared."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return NO_NAME
    if (box := _box(item.get("bbox"))) is None:
        return INVALID_BOX
    name = " ".join(item["name"].split())
    return Named(name, box) if name else NO_NAME


def _box(bbox: Any) -> tuple[float, float, float, float] | None:
    """Returns a box within the image, or None if it is none or has no area there."""
    if not (isinstance(bbox, list) and len(bbox) == 4):
        return None
    left, top, right, bottom = bbox
    if type(left) is type(top) is type(right) is type(bottom) is int:  # the usual case, fast
        if 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000:
            return left, top, right, bottom
    elif not all(map(is_number, bbox)):
        return None
    return within_image(left, top, right, bottom)


def within_image(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float] | None:
    """Returns what of a box is in the image, 0–1000; None if that has no area."""
    left, top, right, bottom = (min(1000, max(0, side)) for side in (left, top, right, bottom))
    if left >= right or top >= bottom or math.isclose(left, right) or math.isclose(top, bottom):
        return None
    return left, top, right, bottom
