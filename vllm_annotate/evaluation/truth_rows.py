"""Reads a truth in the form of the output: a row an image, boxes 0–1000."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.packed import MOST_BOXES, SCALE, Packer
from vllm_annotate.evaluation.texts import lines_of
from vllm_annotate.evaluation.truth import FORMS, Truth
from vllm_annotate.storage.json_text import json_object

ROUNDING = 1e-3  # of what a program made of pixels


def read_rows(path: Path, names: Names, named: str) -> Truth:
    """Reads all rows; if any is reviewed, only those count. Raises UsageError for the first that is wrong."""
    packer, index, largest = Packer(), dict[str, int](), 0.0
    again = unparsed = 0
    reviewed: set[str] = set()
    for number, line in lines_of(path, named):
        image, row = _row(line, f"line {number} of {named}")
        objects = list(_objects(row, f"line {number} of {named}"))
        is_reviewed = row.get("reviewed") is True
        if row.get("annotations_error") is True and not is_reviewed:
            unparsed += 1  # nobody has said that there is nothing in the image
            continue
        again += image in index
        if image in reviewed and not is_reviewed:
            continue
        index[image] = len(packer)
        sides = [side for _, (x1, y1, x2, y2) in objects for side in (x1, y1, x2 - x1, y2 - y1)]
        packer.add([names.number(name) for name, _ in objects], sides, (SCALE, SCALE))
        largest = max(largest, max((max(box) for _, box in objects), default=0.0))
        if is_reviewed:
            reviewed.add(image)
    if not index:
        raise UsageError(f"{named} has no rows with an annotation: {FORMS}")
    if 0 < largest <= 1:
        raise UsageError(f"{named} has no box with a coordinate over 1: multiply by 1000, as boxes are 0–1000")
    others = len(index) - len(reviewed) if reviewed else 0
    notes = {
        "further rows of an image in the truth, of which the last one counts, or the last reviewed one": again,
        "rows of the truth without an annotation, which are left out": unparsed,
        "images of the truth that are not reviewed, and so are no truth": others,
    }
    if reviewed:
        index = {image: at for image, at in index.items() if image in reviewed}
    return Truth(packer.packed(), index, "rows", notes=[f"{text}: {count:,}" for text, count in notes.items() if count])


def _row(line: bytes, where: str) -> tuple[str, dict[str, Any]]:
    row = json_object(line)
    if row is None:
        raise UsageError(f"{where} {_what_it_is(line)}: {FORMS}")
    image = row.get("image_path")
    if not isinstance(image, str) or not image:
        raise UsageError(f"{where} has no image_path: {FORMS}")
    return image, row


def _what_it_is(line: bytes) -> str:
    start = line.strip()[:40]
    if start.startswith(b"["):
        return "is a JSON array"
    if start.startswith(b"{"):
        return "is broken off or not valid JSON"
    return f"is not JSON ({start.decode(errors='replace')!r})"


def _objects(row: dict[str, Any], where: str) -> Iterator[tuple[str, list[float]]]:
    objects = row.get("objects")
    if not isinstance(objects, list):
        raise UsageError(f"{where} has no list of objects (it may be empty): {FORMS}")
    if len(objects) > MOST_BOXES:
        raise UsageError(f"{where} has {len(objects):,} objects: at most {MOST_BOXES:,} of an image are compared")
    for number, item in enumerate(objects, start=1):
        place = f"object {number} in {where}"
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise UsageError(f"{place} has no name: {FORMS}")
        yield item["name"], checked_box(item.get("bbox"), place)


def checked_box(box: Any, place: str) -> list[float]:
    """The box of the output's form. Raises UsageError that begins with `place`."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(number) in (int, float) for number in box):
        raise UsageError(f"{place} has the bbox {box!r:.80}: write [x1, y1, x2, y2], four numbers")
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        raise UsageError(f"{place} has the bbox {box!r:.80}: its numbers must be finite; correct or remove it")
    if not -ROUNDING <= min(box) <= max(box) <= SCALE + ROUNDING:
        raise UsageError(
            f"{place} has the bbox {box!r:.80}: coordinates are 0–1000 of the upright image; divide pixels by width "
            "and height and multiply by 1000, or give COCO, which has pixels"
        )
    if x1 >= x2 or y1 >= y2:
        raise UsageError(f"{place} has the bbox {box!r:.80}: x1 < x2 and y1 < y2 is required; order its corners")
    return box
