"""What people corrected, from a file that Label Studio exported: JSON or JSON-MIN."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.export.label_studio import LABEL, RATIONALE
from vllm_annotate.export.rows import is_number, size_of, within_image
from vllm_annotate.storage.json_text import loads

FORMS = "export the project from Label Studio as JSON or JSON-MIN"


@dataclass
class Review:
    """One person's annotation of one image."""

    image_path: str
    by: str
    at: str  # ISO 8601, as the tool wrote it; may be empty
    rationale: str = ""
    objects: list[dict[str, Any]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    invalid: int = 0  # boxes left out: without name, or without an area in the image

    @property
    def when(self) -> float:
        """Seconds since 1970; 0 if unknown."""
        try:
            time = datetime.fromisoformat(self.at)
        except ValueError:
            return 0.0
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()

    def add_box(self, value: dict[str, Any], size: Any) -> None:
        """Adds the objects of a rectangle, one for each of its labels."""
        names = value.get("rectanglelabels")
        names = [" ".join(name.split()) for name in names if isinstance(name, str)] if isinstance(names, list) else []
        bbox = box_of(value, size)
        if bbox is None or not any(names):
            self.invalid += 1
            return
        self.size = size or self.size
        self.objects += [{"name": name, "bbox": bbox} for name in names if name]


def box_of(value: dict[str, Any], size: tuple[int, int] | None) -> list[int] | None:
    """Returns a rectangle in percent as integers 0-1000; None if nothing of it is in the image.

    A turned rectangle, clockwise around its top left corner, gives the box around it.
    """
    numbers = [value.get(name, 0 if name == "rotation" else None) for name in ("x", "y", "width", "height", "rotation")]
    if not all(map(is_number, numbers)):
        return None
    x, y, width, height, rotation = (float(number) for number in numbers if number is not None)
    wide, high = size or (1, 1)
    turn = math.radians(rotation)
    across = (width * wide * math.cos(turn), width * wide * math.sin(turn))
    down = (-height * high * math.sin(turn), height * high * math.cos(turn))
    xs = [x + step / wide for step in (0, across[0], down[0], across[0] + down[0])]
    ys = [y + step / high for step in (0, across[1], down[1], across[1] + down[1])]
    box = within_image(*(round(side * 10) for side in (min(xs), min(ys), max(xs), max(ys))))
    return None if box is None else [int(side) for side in box]


def read_reviews(path: Path) -> tuple[dict[str, Review], int]:
    """Returns the latest review of each image, and how many tasks have none. Raises UsageError for another file."""
    try:
        tasks = loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except FileNotFoundError:
        raise UsageError(f"--from {str(path)!r} does not exist: {FORMS}, and name that file") from None
    except IsADirectoryError:
        raise UsageError(f"--from {str(path)!r} is a folder: {FORMS}, and name that file") from None
    except ValueError as error:
        raise UsageError(f"--from {str(path)!r} is not JSON ({error!s:.100}): {FORMS}") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UsageError(f"--from {str(path)!r} is not a list of tasks: {FORMS}")
    latest: dict[str, Review] = {}
    without = 0
    for task in tasks:
        found = list(_reviews(task))
        without += not found
        for review in found:
            if review.image_path not in latest or review.when >= latest[review.image_path].when:
                latest[review.image_path] = review
    return latest, without


def _reviews(task: dict[str, Any]) -> Iterator[Review]:
    """Yields the annotations of a task that were not skipped."""
    data = task.get("data") if isinstance(task.get("data"), dict) else task
    image_path = (data or {}).get("image_path")
    if not isinstance(image_path, str) or not image_path:
        return
    if "annotations" not in task and "data" not in task:
        yield _from_min(task, image_path)
        return
    annotations = task.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else []:
        if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
            yield _from_json(annotation, image_path)


def _from_json(annotation: dict[str, Any], image_path: str) -> Review:
    review = Review(image_path, _person(annotation.get("completed_by")), _time(annotation))
    results = annotation.get("result")
    for result in results if isinstance(results, list) else []:
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            continue
        if result.get("type") in ("rectanglelabels", "rectangle"):
            review.add_box(value, _size(result))
        elif result.get("type") == "textarea" and result.get("from_name") == RATIONALE:
            review.rationale = _text(value)
    return review


def _from_min(task: dict[str, Any], image_path: str) -> Review:
    review = Review(image_path, _person(task.get("annotator")), _time(task), _text(task.get(RATIONALE)))
    boxes = task.get(LABEL)
    for box in boxes if isinstance(boxes, list) else []:
        if isinstance(box, dict):
            review.add_box(box, _size(box))
    return review


def _time(fields: dict[str, Any]) -> str:
    return next((fields[name] for name in ("updated_at", "created_at") if isinstance(fields.get(name), str)), "")


def _person(who: Any) -> str:
    """Returns the address or the number of a person."""
    if isinstance(who, dict):
        who = next((who[name] for name in ("email", "username", "id") if who.get(name)), "")
    return str(who) if isinstance(who, str | int) and not isinstance(who, bool) else ""


def _size(fields: dict[str, Any]) -> tuple[int, int] | None:
    return size_of(fields.get("original_width"), fields.get("original_height"))


def _text(value: Any) -> str:
    """Returns the text of a text area in any of its forms."""
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, list):
        return "\n".join(text for text in value if isinstance(text, str))
    return value if isinstance(value, str) else ""
