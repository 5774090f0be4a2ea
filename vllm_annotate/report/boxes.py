"""Reads the boxes of an output row, from any source; skips invalid ones."""

from dataclasses import dataclass
from typing import Any

from vllm_annotate.report.text import text_of

MOST_BOXES, LONGEST_NAME = 200, 120


@dataclass(frozen=True)
class Box:
    """A named box; coordinates 0–1000 of the upright image."""

    name: str
    x1: float
    y1: float
    x2: float
    y2: float


def boxes_of(row: dict[str, Any]) -> list[Box]:
    """The row's objects with a valid box, at most MOST_BOXES."""
    objects = row.get("objects")
    found = map(_box, objects[:MOST_BOXES]) if isinstance(objects, list) else ()
    return [box for box in found if box is not None]


def _box(item: Any) -> Box | None:
    try:
        x1, y1, x2, y2 = (min(1000.0, max(0.0, float(number))) for number in item["bbox"])
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return Box(text_of(item.get("name"), LONGEST_NAME), x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
