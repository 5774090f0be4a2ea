"""Model text → rationale and boxes 0–1000 of the upright image. Pure functions that no text can crash."""

from dataclasses import dataclass, field

import orjson

from vllm_annotate.errors import UnparsableAnswer
from vllm_annotate.grounding.box_checks import Object, check_box, check_objects
from vllm_annotate.grounding.boxes import TOKEN
from vllm_annotate.grounding.objects import Item
from vllm_annotate.grounding.reading import Reading, Stage, read_text
from vllm_annotate.grounding.relations import contradicts_boxes
from vllm_annotate.grounding.repetition import repeats_itself
from vllm_annotate.recipe.families import Family

MAX_CLEAN_CHARS = 50_000  # a longer text may take too long for an event loop, clean or not


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

    Raises UnparsableAnswer if the text contains no list of objects, or none with a usable object.
    """
    reading = read_text(text, truncated=truncated)
    if reading is None:
        raise UnparsableAnswer(f"the text contains no list of objects: {text!r:.200}")
    annotation = _annotation(reading, family, family.denominators(sent_width, sent_height))
    if not annotation.objects and not reading.is_empty:
        raise UnparsableAnswer(f"no object of the text is usable ({', '.join(annotation.flags)}): {text!r:.200}")
    return annotation


def is_clean(text: str) -> bool:
    """Whether the text is valid JSON without repair, and not too long to be parsed in an event loop."""
    if len(text) > MAX_CLEAN_CHARS:
        return False
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False


def _annotation(reading: Reading, family: Family, size: tuple[float, float]) -> Annotation:
    objects: list[Object] = []
    flags = set(reading.flags)
    for item in reading.items:
        found, problems = _object(item, family, size)
        flags.update(problems)
        if found is not None:
            objects.append(found)
    objects, more_flags = check_objects(objects)
    rationale = _clean(reading.rationale)
    if contradicts_boxes(rationale, objects):
        flags.add("relation_contradicted")
    if repeats_itself(rationale):
        flags.add("rationale_repeats")
    return Annotation(rationale, objects, sorted(flags | more_flags), reading.stage)


def _object(item: Item, family: Family, size: tuple[float, float]) -> tuple[Object | None, list[str]]:
    """Returns an object in our form, or None if it has no usable box, and its flags."""
    if item.box is None:
        return None, [item.problem]
    name = item.name.strip()
    name = _clean(TOKEN.sub("", name).strip() if "<" in name else name)
    box = item.box.numbers
    if family.y_first and not item.box.by_name:
        box = [box[1], box[0], box[3], box[2]]
    bbox, flags = check_box(box, size, unit=family.space == "unit")
    if item.box.sized:
        flags.append("width_and_height")
    if not name:
        flags.append("empty_name")
    return (None if bbox is None else {"name": name, "bbox": bbox}), flags


def _clean(text: str) -> str:
    """Replaces lone surrogates, which JSON can escape but UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")
