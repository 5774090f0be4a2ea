"""Scores annotated boxes against the true ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Objects = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Score:
    """Recall at IoU ≥ 0.5 and mean IoU over all true objects (0 for those not found)."""

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
    """Scores pairs of (true objects, annotated objects), one per scene; matches by name, which is unique in a scene."""
    ious = []
    for true, annotated in pairs:
        boxes = {item["name"]: item["bbox"] for item in annotated}
        ious += [iou(item["bbox"], boxes[item["name"]]) if item["name"] in boxes else 0.0 for item in true]
    found = sum(value >= 0.5 for value in ious)
    return Score(len(ious), found / len(ious), sum(ious) / len(ious)) if ious else Score(0, 0.0, 0.0)
