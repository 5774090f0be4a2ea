"""Lenient JSON: values, and the text of members exactly as written."""

import json
import re
from typing import Any

import orjson

# These expect valid JSON.
STRING = r'"(?:[^"\\]++|\\.)*+"'
MEMBER = re.compile(rf"\s*({STRING})\s*:\s*")
SCALAR = re.compile(rf"{STRING}|[^\s,\[\]{{}}\"]++")
BRACKET = re.compile(rf"{STRING}|([\[{{])|[\]}}]")
# One limit for all readers, far below Python's recursion limit: a row that only some of them can read would get lost.
MAX_NESTING = 500


def loads(text: str | bytes) -> Any:
    """Returns the value of a JSON text, including what Python's `json` accepts beyond the standard.

    NaN and infinities become floats (`orjson` writes them as null), lone surrogates become "?". Raises ValueError for
    other text and for nesting deeper than MAX_NESTING.
    """
    _check_nesting(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    value = json.loads(text)
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _check_nesting(text: str | bytes) -> None:
    """Raises ValueError for nesting deeper than MAX_NESTING. A count of brackets is enough for most texts."""
    text = text if isinstance(text, str) else text.decode(errors="replace")
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return
    depth = 0
    for bracket in BRACKET.finditer(text):
        if bracket[0][0] != '"':
            depth += 1 if bracket[1] else -1
            if depth > MAX_NESTING:
                raise ValueError(f"nested more than {MAX_NESTING} levels deep")


def json_object(text: str | bytes | None) -> dict[str, Any] | None:
    """Returns a line parsed as a JSON object, or None if it is not one."""
    try:
        value = loads(text or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def text_member(text: str, name: str) -> str | None:
    """Returns a member of a JSON object as text; None if it is missing, not text, or cannot be a file name.

    Numbers and booleans count as text. A lone surrogate gives None: replaced as in `loads`, two paths could become one.
    """
    value = (json_object(text) or {}).get(name)
    if isinstance(value, str) and "?" in value and "\\u" in text:
        value = json.loads(text)[name]
        if any("\ud800" <= character <= "\udfff" for character in value):
            return None
    if isinstance(value, bool | int):  # Polars returns them as text too
        return json.dumps(value)
    return value if isinstance(value, str) else None


def raw_members(text: str) -> dict[str, tuple[str, str]]:
    """Returns the members of a JSON object: name → (name, value) as written. The last of a repeated name wins.

    Parsing and dumping would change values: integers over 64 bits become floats, 1e400 and NaN become null, and nesting
    over 254 cannot be dumped. `text` must be an object that `json_object` accepts.
    """
    members: dict[str, tuple[str, str]] = {}
    at = text.index("{") + 1
    while (member := MEMBER.match(text, at)) is not None:
        end = _value_end(text, member.end())
        # Inside brackets a raw line break is white space; in a JSONL file it would split the row.
        value = text[member.end() : end].replace("\r", " ").replace("\n", " ")
        name = member[1]
        members[json.loads(name) if "\\" in name else name[1:-1]] = name, value
        comma = text.find(",", end)
        if comma < 0 or text[end:comma].strip():
            break
        at = comma + 1
    return members


def _value_end(text: str, start: int) -> int:
    """Returns the end of the value that begins at `start`."""
    if text[start] not in "[{":
        scalar = SCALAR.match(text, start)
        return start if scalar is None else scalar.end()
    depth = 0
    for bracket in BRACKET.finditer(text, start):
        if bracket[0][0] != '"':
            depth += 1 if bracket[1] else -1
            if depth == 0:
                return bracket.end()
    return len(text)


def object_line(*members: str | bytes) -> bytes:
    """Returns a line with one JSON object. Each text has any number of members."""
    texts = (text.encode() if isinstance(text, str) else text for text in members)
    return b"{" + b",".join(filter(None, texts)) + b"}\n"


def dumped(values: dict[str, Any]) -> bytes:
    """Returns the members of an object as JSON text, without the braces."""
    return orjson.dumps(values)[1:-1]
