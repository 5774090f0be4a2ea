"""Model text → rationale and boxes 0–1000 of the upright image. Pure functions; no text may crash them."""

import re
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import json_repair
import orjson

from flows.errors import UnparsableAnswer

# A brace inside reasoning must not be taken for the answer.
THINKING = re.compile(r".*</think>|<think>.*", re.DOTALL)
BOX_KEYS = ("bbox_2d", "bbox", "box")
NAME_KEYS = ("label", "name")
EDGE_TOLERANCE = 1.05  # a coordinate up to 5 % beyond the edge is rounding; further out it is an error
DEGENERATE = 0  # ‰: a box that rounds to no width or height holds nothing
MAX_ANSWER_CHARS = 12_000  # json-repair is worse than quadratic on some texts; no honest answer is this long
NUMBER = re.compile(r"\s*-?\d{1,9}(\.\d{1,9})?\s*")


@dataclass(frozen=True)
class Annotation:
    """What an answer says: boxes are integers 0–1000 with x1 < x2 and y1 < y2."""

    rationale: str
    objects: list[dict[str, Any]]
    flags: list[str] = field(default_factory=list)


def parse_answer(text: str, sent_width: int, sent_height: int) -> Annotation:
    """The annotation in a Qwen2.5-VL answer, whose boxes are pixels of the `sent_width` × `sent_height` image.

    Raises UnparsableAnswer when the text holds no list of objects, or one of which none is usable.
    """
    answer = _load(THINKING.sub("", text[:MAX_ANSWER_CHARS]))
    if isinstance(answer, list):
        answer = {"objects": answer}
    if not isinstance(answer, dict) or not isinstance(answer.get("objects"), list):
        raise UnparsableAnswer(f"no JSON object with a list of objects in {text!r:.200}")
    rationale = answer.get("rationale")
    objects, flags = [], set()
    for item in answer["objects"]:
        found, problems = _object(item, sent_width, sent_height)
        flags.update(problems)
        if found is not None:
            objects.append(found)
    if answer["objects"] and not objects:
        raise UnparsableAnswer(f"none of {len(answer['objects'])} objects is usable: {', '.join(sorted(flags))}")
    return Annotation(_clean(rationale) if isinstance(rationale, str) else "", objects, sorted(flags))


def is_clean(text: str) -> bool:
    """Whether the text is JSON as it stands, with nothing to mend."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _load(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json_repair.loads(text)
    except (ValueError, RecursionError):
        raise UnparsableAnswer(f"JSON beyond repair: {text!r:.200}") from None


def _object(item: Any, width: int, height: int) -> tuple[dict[str, Any] | None, list[str]]:
    """One object in our form, or None when it has no usable box; and the flags of what was wrong with it."""
    if not isinstance(item, dict):
        return None, ["malformed_object"]
    name = next((item[key] for key in NAME_KEYS if isinstance(item.get(key), str)), "").strip()
    box = _numbers(next((item[key] for key in BOX_KEYS if key in item), None))
    if not _is_box(box):
        return None, ["malformed_box"]
    bbox, flags = to_thousandths(box, width, height)
    if not name:
        flags.append("empty_name")
    if bbox[2] - bbox[0] <= DEGENERATE or bbox[3] - bbox[1] <= DEGENERATE:
        return None, [*flags, "degenerate"]
    return {"name": _clean(name), "bbox": bbox}, flags


def _numbers(box: Any) -> Any:
    """The box with numbers for coordinates that were written as text."""
    if not isinstance(box, list):
        return box
    return [float(v) if isinstance(v, str) and NUMBER.fullmatch(v) else v for v in box]


def _is_box(box: Any) -> TypeGuard[list[float]]:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in box)  # NaN fails too
    )


def to_thousandths(box: list[float], width: int, height: int) -> tuple[list[int], list[str]]:
    """[x1, y1, x2, y2] in pixels of a width × height image → integers 0–1000, and the flags of what was mended."""
    flags = []
    x1, y1, x2, y2 = box
    if x1 > x2 or y1 > y2:
        flags.append("swapped")
        x1, x2 = sorted((x1, x2))
        y1, y2 = sorted((y1, y2))
    relative = [x1 / width, y1 / height, x2 / width, y2 / height]
    if any(v > EDGE_TOLERANCE or v < 1 - EDGE_TOLERANCE for v in relative):
        flags.append("beyond_edge")
    return [min(1000, max(0, round(v * 1000))) for v in relative], flags


def _clean(text: str) -> str:
    """`text` without lone surrogates, which JSON can escape and no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
