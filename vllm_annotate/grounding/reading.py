"""Model text → one rationale and the objects as written, wherever in the text they stand."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import orjson

from vllm_annotate.grounding.boxes import NUMBER, QUAD
from vllm_annotate.grounding.joining import join
from vllm_annotate.grounding.json_values import Found, json_values, strict_json
from vllm_annotate.grounding.objects import Item, Part, part_as_asked, parts_of
from vllm_annotate.grounding.tags import TAGS, named_boxes
from vllm_annotate.grounding.thinking import without_thinking

Stage = Literal["json", "repaired", "tags"]

MAX_ANSWER_CHARS = 1_000_000  # far more than any context holds
# What may stand between the objects of one list: separators, fences, bullets and numbers.
GAP = re.compile(r"(?:[\s,;，；、\-*•]|```\w{0,20}|\d{1,4}[.)、:])*+")
HEADLESS = re.compile(r"""\s*["'“「]\w{1,40}["'”」]\s*[:：]""")  # JSON whose first brace was the start of the prompt
RATIONALE_WORD = "(?:rationale|reasoning|理由|说明)"
PROSE_RATIONALE = re.compile(  # at the start of a line: `Rationale: …`, `【理由】…` or `## Rationale`, a line break, …
    rf"<rationale>(?P<tagged>[^<]*)</rationale>|(?:^|\n)[ \t>*【-]{{0,8}}"
    rf"(?:{RATIONALE_WORD}[*】 ]{{0,4}}[:：]|【{RATIONALE_WORD}】"
    rf"|(?:#{{1,6}} {{0,4}}|\*\*){RATIONALE_WORD}[* ]{{0,4}}\n)"
    r"[*\s]{0,4}(?P<line>[^\s*#【`{\[][^\n【]*)",
    re.IGNORECASE,
)
# What a text without its rationale, or the rest of one beside its objects, should not contain.
LOST_RATIONALE = re.compile(r"""rationale\b(?!["'”」]\s{0,9}[:：]\s{0,9}(?:["'“「]["'”」]|null\b|\[\]|\{\}))""")
LOST_BOX = re.compile(r"""(?:bbox|bbox_2d|box_2d)["'”」]?\s{0,9}[:：]""")


@dataclass
class Reading:
    """What a text says: the rationale, the objects as written, and flags about what is unsure or was left out."""

    stage: Stage
    rationale: str
    items: list[Item]
    flags: set[str] = field(default_factory=set)
    is_empty: bool = False  # the text says that there are no objects


def read_text(text: str, *, truncated: bool) -> Reading | None:
    """Returns what a text says; None if it contains no list of objects.

    Tries strict JSON, then every JSON value in the text, repaired if necessary, and the tags that families write. The
    last object of a truncated answer is removed: its numbers may be cut.
    """
    truncated = truncated or len(text) > MAX_ANSWER_CHARS
    text = text[:MAX_ANSWER_CHARS]
    if (reading := _as_asked(text, truncated=truncated)) is not None:
        return reading
    answer = without_thinking(text)
    for candidate in dict.fromkeys((text, answer)):
        if (reading := _whole(candidate, truncated=truncated)) is not None:
            return reading
    reading = _somewhere(_with_braces(answer), truncated=truncated)
    if reading is None and not truncated and len(answer) < len(text):
        reading = _answer_in_thinking(text)
    return reading


def _as_asked(text: str, *, truncated: bool) -> Reading | None:
    """Reads the usual answer, fast."""
    try:
        part = part_as_asked(orjson.loads(text), text.count('"'))
    except orjson.JSONDecodeError:
        return None
    return None if part is None else _joined([part], "json", truncated=truncated)


def _whole(text: str, *, truncated: bool) -> Reading | None:
    """Reads a text that is valid JSON and nothing else."""
    if (found := strict_json(text)) is None:
        return None
    parts = list(parts_of(found.value))
    if all(part.items is None for part in parts):
        return None
    reading = _joined(parts, "json", truncated=truncated)
    if found.repeats_keys:
        reading.flags.add("repeated_key")
    _flag_unread(reading, text)
    return reading


def _somewhere(text: str, *, truncated: bool) -> Reading | None:
    """Reads every JSON value in a text, or else the boxes in tags."""
    parts, flags, rest = _json_parts(text)
    stage: Stage = "repaired"
    tagged = [Item(name, box, "" if box else "malformed_box") for name, box in named_boxes(rest)]
    if all(part.items is None for part in parts):
        if not tagged:
            return None
        stage = "tags"
        parts.append(Part(items=tagged))
    reading = _joined(parts, stage, truncated=truncated)
    if not reading.rationale:
        reading.rationale = _rationale_in_prose(rest)
    if not reading.rationale and stage == "tags":
        reading.rationale = TAGS.sub("", text).strip()
    reading.flags |= flags
    if stage == "repaired" and LOST_BOX.search(rest):
        reading.flags.add("ignored_text")
    _flag_unread(reading, text, tagged)
    return reading


def _with_braces(text: str) -> str:
    """Returns the text, within braces if it is the inside of a JSON object."""
    if not HEADLESS.match(text):
        return text
    whole = f"{{{text}}}"
    return whole if strict_json(whole) else f"{{{text}"


def _json_parts(text: str) -> tuple[list[Part], set[str], str]:
    """Returns what the JSON values in a text say, flags about them, and the text without them."""
    parts: list[Part] = []
    flags: set[str] = set()
    rest = []
    position = 0
    for found in json_values(text):
        said = list(parts_of(found.value))
        flags |= _losses(found, said)
        if not any(part.rationale or part.items for part in said) and not any(part.is_answer for part in said):
            continue
        said[0].after_prose = not GAP.fullmatch(text, position, found.start)
        if found.is_cut and (last := _last_list(said)):
            last.without_last()
        parts += said
        rest += [text[position : found.start], "\n"]
        position = found.end
    return parts, flags, "".join([*rest, text[position:]])


def _losses(found: Found, said: list[Part]) -> set[str]:
    flags = set()
    if found.repeats_keys:
        flags.add("repeated_key")
    if found.is_lost or (not said and found.value and isinstance(found.value, dict)):
        flags.add("ignored_text")
    return flags


def _last_list(parts: list[Part]) -> Part | None:
    return next((part for part in reversed(parts) if part.items is not None), None)


def _joined(parts: list[Part], stage: Stage, *, truncated: bool) -> Reading:
    last = _last_list(parts)
    if truncated and last is not None and last.items and not last.is_cut:
        last.without_last()
    rationale, items, several = join(parts)
    is_empty = not items and not (last is not None and last.is_cut)
    flags = {"several_answers"} if several else set()
    if truncated or (last is not None and last.is_cut):
        flags.add("truncated")
    return Reading(stage, rationale, items, flags, is_empty)


def _answer_in_thinking(text: str) -> Reading | None:
    """Reads the last whole answer of a text that ends in its thinking, or has nothing after it."""
    answers = [part for part in _json_parts(text)[0] if part.is_answer and not part.is_cut]
    if not answers:
        return None
    reading = _joined(answers, "repaired", truncated=False)
    reading.flags.add("thinking_only")
    return reading


def _rationale_in_prose(text: str) -> str:
    """Returns the line after the word `rationale` and a colon."""
    found = PROSE_RATIONALE.search(text)
    return found[found.lastgroup or 0].strip() if found else ""


def _flag_unread(reading: Reading, text: str, tagged: Iterable[Item] = ()) -> None:
    """Flags a rationale and boxes of a text that the reading lacks, unless a flag already says that it lacks some."""
    if not reading.rationale and LOST_RATIONALE.search(text):
        reading.flags.add("ignored_text")
    if reading.flags & {"several_answers", "truncated", "ignored_text"}:
        return
    read = {tuple(item.box.numbers) for item in reading.items if item.box}
    quads = (tuple(float(number) for number in NUMBER.findall(quad[0])) for quad in QUAD.finditer(text))
    if any(numbers not in read for numbers in (*quads, *(tuple(item.box.numbers) for item in tagged if item.box))):
        reading.flags.add("ignored_text")
