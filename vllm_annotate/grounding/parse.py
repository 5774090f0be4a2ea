"""Model text → rationale and boxes 0–1000 of the upright image. Pure functions that no text can crash."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import json_repair
import orjson

from vllm_annotate.errors import UnparsableAnswer
from vllm_annotate.grounding.box_checks import Object, check_box, check_objects
from vllm_annotate.recipe.families import Family

Stage = Literal["json", "repaired", "tags"]

FULL_WIDTH = str.maketrans("“”：，［］｛｝", '"":,[]{}')
MAX_ANSWER_CHARS = 12_000  # json-repair is worse than quadratic on some texts; no good answer is this long

BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box")
NAME_KEYS = ("label", "name")
NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?")
NUMBER_TEXT = re.compile(rf"\s*{NUMBER.pattern}\s*")
NAME_TAG = r"(?:<ref>|<\|ref\|>|<\|object_ref_start\|>)(?P<name>[^<>]{0,200})(?:</ref>|<\|/ref\|>|<\|object_ref_end\|>)"
BOX_TAG = (
    r"(?:<box>|<\|det\|>|<\|box_start\|>|<\|begin_of_box\|>)(?P<box>[^<>]{0,2000})"
    r"(?:</box>|<\|/det\|>|<\|box_end\|>|<\|end_of_box\|>)"
)
# Qwen2-VL's boxes after vLLM has removed the special tokens.
BARE_BOX = r"(?P<bare>\(\s*\d+\s*,\s*\d+\s*\)\s*,\s*\(\s*\d+\s*,\s*\d+\s*\))"
TAGS = re.compile(f"{NAME_TAG}|{BOX_TAG}|{BARE_BOX}")
WHOLE_END = re.compile(r"[\]}](?:\s|`)*\Z")


@dataclass(frozen=True)
class Annotation:
    """A parsed answer. Boxes are integers 0–1000 with x1 < x2 and y1 < y2."""

    rationale: str
    objects: list[Object]
    flags: list[str] = field(default_factory=list)
    stage: Stage = "json"


def parse_answer(
    text: str, family: Family, sent_width: int, sent_height: int, *, truncated: bool = False
) -> Annotation:
    """Parses the answer of a model of `family` that saw a `sent_width` × `sent_height` image.

    Tries strict JSON, repaired JSON, then the tags that families write. The last object of a truncated answer is
    removed: its numbers may be cut. Raises UnparsableAnswer if no stage finds a list with a usable object.
    """
    text = _without_thinking(text[:MAX_ANSWER_CHARS])
    size = family.denominators(sent_width, sent_height)
    reason = "the text contains no list of objects"
    for stage, rationale, items in _readings(text):
        cut = truncated or (stage == "repaired" and _looks_cut(text))
        annotation = _annotation(rationale, items[:-1] if cut else items, family, size, stage, cut=cut)
        if annotation.objects or not items:
            return annotation
        reason = f"none of its {len(items)} objects is usable ({', '.join(annotation.flags)})"
    raise UnparsableAnswer(f"{reason}: {text!r:.200}")


def _without_thinking(text: str) -> str:
    """Returns the text after the reasoning, which may lack its opening tag and may contain braces."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def is_clean(text: str) -> bool:
    """Whether the text is valid JSON, without repair."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _readings(text: str) -> Iterator[tuple[Stage, str, list[Any]]]:
    """Yields stage, rationale and objects (as written) for each stage that finds a list of objects."""
    try:
        strict = orjson.loads(text)
    except orjson.JSONDecodeError:
        strict = None
    if (found := _find_objects(strict)) is not None:
        yield "json", *found
    if "{" in text or "[" in text or "｛" in text or "［" in text:
        for candidate in dict.fromkeys((text, text.translate(FULL_WIDTH))):
            if (found := _find_objects(_repaired(candidate))) is not None:
                yield "repaired", *found
    if items := list(_in_tags(text)):
        yield "tags", TAGS.sub("", text).strip(), items


def _looks_cut(text: str) -> bool:
    """Whether repaired JSON breaks off: it does not end in a bracket, and brackets are open."""
    opened, closed = (sum(map(text.count, brackets)) for brackets in ("{[", "}]"))
    return opened > closed and not WHOLE_END.search(text)


def _repaired(text: str) -> Any:
    try:
        return json_repair.loads(text)
    except Exception:  # on hostile text json-repair raises undocumented exceptions: AssertionError, RecursionError, …
        return None


def _find_objects(value: Any, depth: int = 0) -> tuple[str, list[Any]] | None:
    """Returns rationale and objects of a JSON value: in their place, else from wherever a list of boxes is."""
    if isinstance(value, list):
        boxed = any(isinstance(item, dict) and any(key in item for key in BOX_KEYS) for item in value)
        return ("", value) if boxed else None
    if not isinstance(value, dict) or depth > 3:
        return None
    rationale = value.get("rationale")
    objects = value.get("objects")
    if not isinstance(objects, list):
        nested = (_find_objects(inner, depth + 1) for inner in value.values())
        first = next((found for found in nested if found is not None), None)
        if first is None:
            return None
        rationale, objects = rationale or first[0], first[1]
    return (rationale if isinstance(rationale, str) else ""), objects


def _in_tags(text: str) -> Iterator[dict[str, Any]]:
    """Yields objects in `<ref>name</ref><box>…</box>` and similar tags.

    Without a name tag, the name is the text before the box on its line.
    """
    name, end = "", 0
    for match in TAGS.finditer(text):
        if match["name"] is not None:
            name = match["name"]
        else:
            before = text[end : match.start()].rpartition("\n")[2].strip(" \t-*:：,，.。;；\"'")
            numbers = [float(number) for number in NUMBER.findall(match["box"] or match["bare"] or "")]
            for at in range(0, len(numbers), 4):
                yield {"label": name or before, "bbox_2d": numbers[at : at + 4]}
            if match["bare"] is not None or before:
                name = ""
        end = match.end()


def _annotation(
    rationale: str, items: list[Any], family: Family, size: tuple[float, float], stage: Stage, *, cut: bool
) -> Annotation:
    objects: list[Object] = []
    flags = {"truncated"} if cut else set()
    for item in items:
        found, problems = _object(item, family, size)
        flags.update(problems)
        if found is not None:
            objects.append(found)
    objects, more_flags = check_objects(objects)
    return Annotation(_clean(rationale), objects, sorted(flags | more_flags), stage)


def _object(item: Any, family: Family, size: tuple[float, float]) -> tuple[Object | None, list[str]]:
    """Returns an object in our form, or None if it has no usable box, and its flags."""
    if not isinstance(item, dict):
        return None, ["malformed_object"]
    name = _clean(next((item[key] for key in NAME_KEYS if isinstance(item.get(key), str)), "").strip())
    box = _numbers(next((item[key] for key in BOX_KEYS if key in item), None))
    if box is None:
        return None, ["malformed_box"]
    if family.y_first:
        box = [box[1], box[0], box[3], box[2]]
    bbox, flags = check_box(box, size, unit=family.space == "unit")
    if not name:
        flags.append("empty_name")
    return (None if bbox is None else {"name": name, "bbox": bbox}), flags


def _numbers(box: Any) -> list[float] | None:
    """Returns four finite numbers from [a, b, c, d] or [[a, b], [c, d]], which may be text; else None."""
    if isinstance(box, list) and box and isinstance(box[0], list) and all(isinstance(corner, list) for corner in box):
        box = [value for corner in box for value in corner]
    if not isinstance(box, list) or len(box) != 4:
        return None
    if all(type(v) is int for v in box) and max(box) < 1e9 and min(box) > -1e9:  # the usual case, fast
        return box
    numbers = [float(v) if isinstance(v, str) and NUMBER_TEXT.fullmatch(v) else v for v in box]
    fine = (isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in numbers)  # NaN fails too
    return numbers if all(fine) else None


def _clean(text: str) -> str:
    """Replaces lone surrogates, which JSON can escape but UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")
