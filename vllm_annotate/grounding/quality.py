"""Statistics of answers: how they were parsed, their flags, names and positions."""

from collections import Counter
from typing import Any

MAX_ANSWERS = 100_000  # counted per run: enough for any share, in a second or two
MAX_NAMES = 20


def _is_object(item: Any) -> bool:
    if not (isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("bbox"), list)):
        return False
    return len(item["bbox"]) == 4 and all(type(side) is int and 0 <= side <= 1000 for side in item["bbox"])


def _is_ours(row: dict[str, Any]) -> bool:
    """Whether the counted fields are as a run writes them: other programs may have edited the output."""
    objects, flags = row.get("objects"), row.get("flags", [])
    return (
        isinstance(objects, list)
        and all(map(_is_object, objects))
        and isinstance(flags, list)
        and all(isinstance(flag, str) for flag in flags)
        and isinstance(row.get("parse_stage", "json"), str)
        and type(row.get("attempts", 1)) is int
    )


class Quality:
    """Counts over answered rows of an output."""

    def __init__(self) -> None:
        self.answers = 0
        self._stages: Counter[str] = Counter()
        self._flags: Counter[str] = Counter()
        self._flagged = 0
        self._attempts: Counter[int] = Counter()
        self._objects: Counter[int] = Counter()
        self._names: Counter[str] = Counter()
        self._areas: Counter[str] = Counter()  # of the box's centre, on a 3 × 3 grid
        self._share = 0.0

    @property
    def is_full(self) -> bool:
        """Whether enough answers were counted."""
        return self.answers >= MAX_ANSWERS

    def add_all(self, other: "Quality") -> None:
        """Counts the rows that another one counted, until this one is full."""
        if self.is_full:
            return
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def add(self, row: dict[str, Any]) -> None:
        """Counts a row of the output. A row edited into something else counts as failed."""
        self.answers += 1
        if not _is_ours(row):
            self._stages["failed"] += 1
            return
        self._stages["failed" if row.get("annotations_error") else row.get("parse_stage", "json")] += 1
        self._flags.update(row.get("flags", ()))
        self._flagged += bool(row.get("flags"))
        self._attempts[row.get("attempts", 1)] += 1
        self._objects[len(row["objects"])] += 1
        for item in row["objects"]:
            self._names[item["name"]] += 1
            x1, y1, x2, y2 = item["bbox"]
            column = ("left", "centre", "right")[min(2, (x1 + x2) * 3 // 2000)]
            self._areas[f"{('top', 'middle', 'bottom')[min(2, (y1 + y2) * 3 // 2000)]} {column}"] += 1
            self._share += (x2 - x1) * (y2 - y1) / 1_000_000

    def summary(self) -> dict[str, Any]:
        """Returns counts of answers by stage, flag, attempts and number of objects; of objects by name and area."""
        objects = sum(number * count for number, count in self._objects.items())
        return {
            "answers": self.answers,
            "parse_stages": dict(self._stages.most_common()),
            "flags": dict(self._flags.most_common()),
            "flagged": self._flagged,
            "attempts": {str(number): count for number, count in sorted(self._attempts.items())},
            "objects": objects,
            "objects_an_image": {str(number): count for number, count in sorted(self._objects.items())},
            "names": dict(self._names.most_common(MAX_NAMES)),
            "distinct_names": len(self._names),
            "areas": dict(self._areas.most_common()),
            "mean_box_share": round(self._share / objects, 4) if objects else 0.0,
        }
