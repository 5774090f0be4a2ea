"""The JSON values in a model's text: read strictly where they are valid, else repaired."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import json_repair
import orjson

from vllm_annotate.grounding.boxes import QUAD
from vllm_annotate.grounding.objects import OBJECTS_KEYS, Repeated, parts_of
from vllm_annotate.grounding.tags import BOX_TAG, NAME_TAG, NAMED_BOX_TAG

# json-repair takes time with the square of the quotes, and more with the depth: 12,000 characters can take 10 s.
# Within these bounds, which no answer comes near, it takes less than 1 s.
MAX_REPAIRED_CHARS = 12_000
MAX_REPAIRED_DEPTH = 100
MAX_REPAIRED_QUOTES = 2_500
MAX_STRICT_TRIES = 200  # that fail: each may read to the end of the text
FULL_WIDTH = str.maketrans("“”：，、［］｛｝（）０１２３４５６７８９", '"":,,[]{}()0123456789')
# Strings, which stay as they are; strings in other quotes, tags and boxes, to be quoted; and marks, to be replaced.
STRING = r"""(?P<string>"(?:[^"\\]|\\.)*+"|'[^']*+'(?=\s*+[:：,，\]}］｝]))"""
OTHER_STRING = r"“(?P<curly>[^“”]*)”|「(?P<corner>[^「」]*)」|『(?P<white>[^『』]*)』"
MARK = r"(?P<mark>[：，、［］｛｝０-９])"
TAGGED = f"(?P<tagged>{NAMED_BOX_TAG})|{BOX_TAG}|{NAME_TAG}|(?P<pairs>{QUAD.pattern})"
TOKENS = re.compile(f"{STRING}|{OTHER_STRING}|{TAGGED}|{MARK}", re.DOTALL)
KEY_WORD = re.compile(r"\b(?:rationale|objects|bbox_2d|bbox|box_2d)\b")
QUOTED_KEY = re.compile(r"""["'“「](\w{1,40})["'”」]\s{0,9}[:：]""")
JSON_WHITESPACE = " \t\r\n"
FENCE = re.compile(r"```\w*")
BRACKET = re.compile(r"[\[\]{}［］｛｝]")
CLOSES = {"]": "[", "}": "{"}


@dataclass
class Found:
    """A JSON value in a text, and where it stands."""

    value: Any
    start: int
    end: int
    is_strict: bool = True
    is_cut: bool = False  # breaks off: its last object may be incomplete
    repeats_keys: bool = False
    is_lost: bool = False  # some of it could not be read


def strict_json(text: str) -> Found | None:
    """Returns the value of a text that is valid JSON as a whole, and nested no deeper than 900 levels or so."""
    try:
        orjson.loads(text)  # stricter than json, and fast to refuse
        return _Decoder().at(text, len(text) - len(text.lstrip(JSON_WHITESPACE)))
    except (ValueError, RecursionError):
        return None


class _Decoder:
    """Decodes strict JSON, with all values of keys that an object repeats: `json` and `orjson` keep the last."""

    def __init__(self) -> None:
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=_refuse)
        self._repeats = False

    def at(self, text: str, start: int) -> Found:
        """Returns the value that starts there. Raises ValueError or RecursionError if there is none."""
        self._repeats = False
        value, end = self._json.raw_decode(text, start)
        return Found(value, start, end, repeats_keys=self._repeats)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        self._repeats = True
        groups: dict[str, Repeated] = {}
        for key, inner in pairs:
            groups.setdefault(key, Repeated()).append(inner)
        return {key: group if len(group) > 1 else group[0] for key, group in groups.items()}


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def json_values(text: str) -> list[Found]:
    """Returns the outermost JSON values of a text in their order."""
    found = list(_spans(text))
    left = MAX_REPAIRED_CHARS
    for span in reversed(found):  # the last answer counts
        if not span.is_strict:
            left -= _repair(span, text[span.start : span.end], left)
    if all(span.is_strict for span in found):
        return found
    return _as_one(found, text, left) or found


def _as_one(found: list[Found], text: str, left: int) -> list[Found] | None:
    """Returns all values as one if that says more: a wrong bracket can close a value before its end."""
    one = Found(None, found[0].start, max(text.rfind(bracket) for bracket in "]}") + 1, is_strict=False)
    if one.end <= found[0].end or one.end - one.start > left:
        return None
    _repair(one, text[one.start : one.end], left)
    apart = [_worth(span.value) for span in found]
    return [one] if _worth(one.value) > (sum(worth[0] for worth in apart), max(worth[1] for worth in apart)) else None


def _spans(text: str) -> Iterator[Found]:
    """Yields the outermost values: the valid ones read, the others as their places."""
    ends = _bracket_ends(text)
    decoder = _Decoder()
    tries = MAX_STRICT_TRIES
    position = 0
    while (bracket := BRACKET.search(text, position)) is not None:
        start, position = bracket.start(), bracket.end()
        if bracket[0] in "]}］｝":
            continue
        if bracket[0] in "[{" and tries:
            try:
                found = decoder.at(text, start)
            except (ValueError, RecursionError):
                tries -= 1
            else:
                position = found.end
                if found.value:
                    yield found
                continue
        if start in ends:
            position = ends[start]
            yield Found(None, start, position, is_strict=False)
            continue
        position = _end_of_open(text, start, ends)
        is_whole = text[start:position].rstrip("` \t\r\n").endswith(("]", "}", "］", "｝"))
        yield Found(None, start, position, is_strict=False, is_cut=not is_whole)


def _bracket_ends(text: str) -> dict[int, int]:
    """Returns where each bracket that is closed ends. Strings are not respected: bad JSON has no certain strings."""
    ends: dict[int, int] = {}
    opened: list[tuple[str, int]] = []
    unclosed = {"[": 0, "{": 0}
    for match in BRACKET.finditer(text):
        bracket = match[0].translate(FULL_WIDTH)
        if bracket in unclosed:
            opened.append((bracket, match.start()))
            unclosed[bracket] += 1
        elif unclosed[CLOSES[bracket]]:
            while True:  # over brackets of the other kind that were never closed
                last, start = opened.pop()
                unclosed[last] -= 1
                if last == CLOSES[bracket]:
                    break
            ends[start] = match.end()
    return ends


def _end_of_open(text: str, start: int, ends: dict[int, int]) -> int:
    """Returns the end of a value that is never closed: the text's, a fence's, or where a whole answer starts."""
    fence = FENCE.search(text, start)
    end = fence.start() if fence else len(text)
    position = start + 1
    while (brace := text.find("{", position, end)) >= 0:
        position = ends.get(brace, brace + 1)
        inside = text[brace:position]
        if any(f'"{key}"' in inside for key in OBJECTS_KEYS) and _is_whole_answer(inside):
            return brace
    return end


def _is_whole_answer(text: str) -> bool:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and any(key in value for key in OBJECTS_KEYS)


def _repair(span: Found, text: str, left: int) -> int:
    """Repairs a value's text, as much of it as may be; returns the number of characters that this took."""
    if len(text) > left:
        text, span.is_cut, span.is_lost = text[:left], True, True
    quotes = text.count('"') + text.count("'")
    if not text or quotes > MAX_REPAIRED_QUOTES or _depth(text) > MAX_REPAIRED_DEPTH:
        span.is_lost = True
        return 0
    candidates = dict.fromkeys((text, _with_plain_marks(text), text.translate(FULL_WIDTH)))
    boxes = len(set(QUAD.findall(text)))
    best = (-1, 0)
    for candidate in candidates:
        value = _repaired(candidate)
        worth = _worth(value)
        if worth > best:
            best, span.value = worth, value
        if worth >= (boxes, 1):
            break
    span.is_lost = span.is_lost or _lacks_keys(span.value, text)
    return len(text)


def _lacks_keys(value: Any, text: str) -> bool:
    """Whether a text has keys that its repaired value lacks: repair drops what it cannot place."""
    if not isinstance(value, dict | list):
        return True
    keys: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for key, inner in _members(value):
        keys[key] += 1
        words.update(KEY_WORD.findall(inner) if isinstance(inner, str) else ())
    return bool(Counter(QUOTED_KEY.findall(text)) - keys or Counter(KEY_WORD.findall(text)) - keys - words)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the keys and values of all objects in a value, and the items of its lists under an empty key."""
    for key, inner in value.items() if isinstance(value, dict) else [("", inner) for inner in value]:
        yield key, inner
        if isinstance(inner, dict | list):
            yield from _members(inner)


def _worth(value: Any) -> tuple[int, int]:
    """Returns how much a value says: the number of objects with name and box, and whether there is a rationale."""
    parts = list(parts_of(value))
    objects = sum(bool(item.box and item.name) for part in parts for item in part.items or ())
    return objects, int(any(part.rationale for part in parts))


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in BRACKET.findall(text):
        depth += 1 if bracket in "[{［｛" else -1
        deepest = max(deepest, depth)
    return deepest


def _with_plain_marks(text: str) -> str:
    """Replaces, outside strings, full-width punctuation, and quotes strings and boxes that JSON has no form for."""

    def plain(match: re.Match[str]) -> str:
        kind = match.lastgroup
        if kind == "string" or (kind == "pairs" and match[0][0] == "["):
            return match[0]
        if kind == "mark":
            return match[0].translate(FULL_WIDTH)
        return json.dumps(match[kind or 0], ensure_ascii=False)

    return TOKENS.sub(plain, text)


def _repaired(text: str) -> Any:
    try:
        return json_repair.loads(text)
    except Exception:  # on hostile text json-repair raises undocumented exceptions: AssertionError, RecursionError, …
        return None
