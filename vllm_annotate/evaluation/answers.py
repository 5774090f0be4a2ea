"""The boxes of an output, one image after the other. A bad row costs itself, a bad box too; both are counted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.packed import MOST_BOXES, SCALE, Packer
from vllm_annotate.evaluation.texts import check_file, lines_of
from vllm_annotate.evaluation.truth import Truth
from vllm_annotate.report.text import text_of
from vllm_annotate.storage.json_text import json_object


@dataclass(frozen=True)
class Answer:
    """The boxes of one image."""

    image_path: str
    names: list[int]
    boxes: list[float]  # x, y, width and height of each, 0–1000
    size: tuple[float, float]  # width and height in pixels; 0 if the row does not say


class Answers:
    """An output to read, and what was found in it that cannot be used."""

    def __init__(self, path: Path, names: Names, option: str = "--output") -> None:
        check_file(path, option, or_folder=True)
        self.path, self.named = path, f"{option} {str(path)!r}"
        self._names = names
        self.rows = self.malformed = self.unparsed = self.bad_boxes = self.left_out = 0

    def read(self) -> Iterator[Answer]:
        """Yields the answers. Raises UsageError if no line is a row of an output."""
        for _, line in lines_of(self.path, self.named):
            row = json_object(line)
            image = row.get("image_path") if row else None
            if row is None or not isinstance(image, str) or not image or "objects" not in row:
                self.malformed += 1
                continue
            self.rows += 1
            self.unparsed += row.get("annotations_error") is True
            names, boxes = self._boxes(row["objects"])
            yield Answer(image, names, boxes, _size(row))
        if not self.rows:
            raise UsageError(f"{self.named} has no row with image_path and objects: name the output of a run")

    def notes(self) -> list[str]:
        """What could not be used."""
        counted = {
            "rows without an annotation, which count as images without boxes": self.unparsed,
            "lines of the output that are no rows, and are left out": self.malformed,
            "boxes that are not four numbers 0–1000 in order, and are left out": self.bad_boxes,
            f"boxes that are left out, as at most {MOST_BOXES:,} of an image are compared": self.left_out,
        }
        return [f"{text}: {count:,}" for text, count in counted.items() if count]

    def _boxes(self, objects: Any) -> tuple[list[int], list[float]]:
        names: list[int] = []
        boxes: list[float] = []
        if not isinstance(objects, list):
            return names, boxes
        self.left_out += max(0, len(objects) - MOST_BOXES)
        for item in objects[:MOST_BOXES]:
            try:
                x1, y1, x2, y2 = item["bbox"]
                usable = 0 <= x1 < x2 <= SCALE and 0 <= y1 < y2 <= SCALE
                name = item.get("name")
            except (TypeError, KeyError, ValueError, AttributeError):
                usable = False
            if not usable:
                self.bad_boxes += 1
                continue
            names.append(self._names.number(name if isinstance(name, str) else text_of(name)))
            boxes += (x1, y1, x2 - x1, y2 - y1)
        return names, boxes


def read_as_truth(answers: Answers) -> Truth:
    """An output in place of the truth, to compare another with it. Of two rows of an image, the first one counts."""
    packer, index = Packer(), dict[str, int]()
    for answer in answers.read():
        if answer.image_path not in index:
            index[answer.image_path] = len(packer)
            packer.add(answer.names, answer.boxes, (SCALE, SCALE))
    return Truth(packer.packed(), index, "rows")


def _size(row: dict[str, Any]) -> tuple[float, float]:
    width, height = row.get("width"), row.get("height")
    known = type(width) is int and type(height) is int and 0 < width < 1 << 24 and 0 < height < 1 << 24
    return (width, height) if known else (0, 0)  # type: ignore[return-value]
