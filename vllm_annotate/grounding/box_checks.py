"""Checks of boxes: each flags what it finds, and some correct or remove the box (FLAGS says which)."""

from collections.abc import Sequence
from itertools import islice, pairwise
from typing import TypedDict

EDGE_TOLERANCE = 0.05
SMALLEST_SIDE = 5  # ‰
NEAR_DUPLICATE_IOU = 0.9
WHOLE_IMAGE_SHARE = 0.95
PROGRESSION_LENGTH = 4
MAX_COMPARED = 300  # boxes of a name that each is compared with: to compare 20,000 with each other takes minutes

FLAGS = {  # what was found, and what was done about it
    "swapped": ("corners in the wrong order", "put right"),
    "beyond_edge": (
        "over the image's edge by more than 5 %",
        "clamped (up to 5 % is clamped without a flag)",
    ),
    "degenerate": ("less than 5 ‰ wide or high", "left out"),
    "malformed_box": ("not four numbers", "left out"),
    "malformed_object": ("not an object", "left out"),
    "duplicate": ("same name and box as an earlier one", "left out"),
    "near_duplicate": ("IoU over 0.9 with an earlier one of the same name", "unchanged"),
    "whole_image": ("covers 95 % of the image or more", "unchanged"),
    "progression": ("four or more boxes of one size in equal steps, as loops write them", "unchanged"),
    "empty_name": ("no name", "unchanged"),
    "unit_coordinates": (
        "all four numbers are at most 1 in a larger space: the model answers in another space than it was asked for",
        "converted as written, so usually left out as `degenerate`",
    ),
    "truncated": ("the answer breaks off", "its last object was left out"),
    "width_and_height": ("a box as x, y, width and height", "converted, with x and y as its top left corner"),
    "repeated_key": ("a JSON object that repeats a key", "every value of the key was read"),
    "several_answers": (
        "several answers or lists of objects that differ, as models write drafts",
        "the last whole answer was used, with objects outside it that have other names",
    ),
    "thinking_only": ("an answer inside the model's thinking, and none after it", "read from there"),
    "relation_contradicted": (
        'the rationale states where things are, as in "the cup is left of the plate", and their boxes clearly say '
        "otherwise",
        "unchanged",
    ),
    "rationale_repeats": ("one character or phrase of the rationale over and over, as loops write them", "unchanged"),
    "ignored_text": ("JSON or boxes that are no part of the answer, or could not be read", "left out"),
}


class Object(TypedDict):
    """A named box: [x1, y1, x2, y2], integers 0–1000."""

    name: str
    bbox: list[int]


def check_box(box: list[float], size: tuple[float, float], *, unit: bool) -> tuple[list[int] | None, list[str]]:
    """Returns a box [x1, y1, x2, y2] in a space of `size` (width, height) as integers 0–1000, and its flags.

    The box is None if it is degenerate.
    """
    flags = []
    x1, y1, x2, y2 = box
    if not unit and max(box) <= 1:
        flags.append("unit_coordinates")
    if x1 > x2 or y1 > y2:
        flags.append("swapped")
        x1, x2 = sorted((x1, x2))
        y1, y2 = sorted((y1, y2))
    shares = [x1 / size[0], y1 / size[1], x2 / size[0], y2 / size[1]]
    if max(shares) > 1 + EDGE_TOLERANCE or min(shares) < -EDGE_TOLERANCE:
        flags.append("beyond_edge")
    bbox = [min(1000, max(0, round(share * 1000))) for share in shares]
    if bbox[2] - bbox[0] < SMALLEST_SIDE or bbox[3] - bbox[1] < SMALLEST_SIDE:
        return None, [*flags, "degenerate"]
    return bbox, flags


def check_objects(objects: list[Object]) -> tuple[list[Object], set[str]]:
    """Returns the objects without exact duplicates, and the flags about several objects or a box's size."""
    flags: set[str] = set()
    kept: list[Object] = []
    boxes_by_name: dict[str, dict[tuple[int, ...], list[int]]] = {}
    for item in objects:
        bbox = item["bbox"]
        namesakes = boxes_by_name.setdefault(item["name"], {})
        if tuple(bbox) in namesakes:
            flags.add("duplicate")
            continue
        others = islice(namesakes.values(), MAX_COMPARED)
        # With left sides more than a tenth of the image apart, no IoU is over 0.9: this tells most pairs apart, fast.
        if any(abs(bbox[0] - other[0]) <= 100 and iou(bbox, other) > NEAR_DUPLICATE_IOU for other in others):
            flags.add("near_duplicate")
        if (bbox[2] - bbox[0]) * (bbox[3] - bbox[1]) >= WHOLE_IMAGE_SHARE * 1_000_000:
            flags.add("whole_image")
        namesakes[tuple(bbox)] = bbox
        kept.append(item)
    if _is_progression(kept):
        flags.add("progression")
    return kept, flags


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the intersection over union of two boxes [x1, y1, x2, y2] that are not empty."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _is_progression(objects: list[Object]) -> bool:
    """Whether boxes of one size follow each other in equal steps, apart from rounding."""
    run = 1
    previous_step: tuple[int, int] | None = None
    for before, after in pairwise(item["bbox"] for item in objects):
        step = (after[0] - before[0], after[1] - before[1])
        if not _nearly((after[2] - before[2], after[3] - before[3]), step):  # another size
            run, previous_step = 1, None
            continue
        run = run + 1 if previous_step is None or _nearly(step, previous_step) else 2
        previous_step = step
        if run >= PROGRESSION_LENGTH:
            return True
    return False


def _nearly(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return abs(a[0] - b[0]) <= 1 and abs(a[1] - b[1]) <= 1
