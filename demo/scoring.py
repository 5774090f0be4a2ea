"""How well annotated boxes meet the true ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Objects = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Score:
    """Over all true objects: how many were found at IoU ≥ 0.5, and the mean IoU (0 for those not found at all)."""

    objects: int
    recall: float
    mean_iou: float


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2]."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def score(pairs: Sequence[tuple[Objects, Objects]]) -> Score:
    """Scores (true objects, annotated objects) a scene; objects are matched by name, names are unique in a scene."""
    ious = []
    for true, annotated in pairs:
        boxes = {item["name"]: item["bbox"] for item in annotated}
        ious += [iou(item["bbox"], boxes[item["name"]]) if item["name"] in boxes else 0.0 for item in true]
    found = sum(value >= 0.5 for value in ious)
    return Score(len(ious), found / len(ious), sum(ious) / len(ious)) if ious else Score(0, 0.0, 0.0)
