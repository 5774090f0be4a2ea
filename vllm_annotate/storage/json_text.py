"""JSON as people and models write it: its values, and the text of its members as it stands."""

import json
import re
from typing import Any

import orjson

# Of a text that is known to be valid: strings, numbers and words, and whatever opens or closes.
STRING = r'"(?:[^"\\]++|\\.)*+"'
MEMBER = re.compile(rf"\s*({STRING})\s*:\s*")
SCALAR = re.compile(rf"{STRING}|[^\s,\[\]{{}}\"]++")
BRACKET = re.compile(rf"{STRING}|([\[{{])|[\]}}]")
# The same for every reader, and far less than Python's stack: what one reads, and another does not, is lost in between.
MOST_NESTED = 500


def loads(text: str | bytes) -> Any:
    """The value of a JSON text; what Python's `json` writes beyond the standard is taken too.

    NaN and infinities become floats (`orjson` writes them as null), lone surrogates become "?". Raises ValueError, also
    for what is nested deeper than MOST_NESTED.
    """
    _check_nesting(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    value = json.loads(text)
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _check_nesting(text: str | bytes) -> None:
    """Raises ValueError for a text that is nested too deeply; most are let through by a count of brackets."""
    text = text if isinstance(text, str) else text.decode(errors="replace")
    if text.count("[") + text.count("{") <= MOST_NESTED:
        return
    depth = 0
    for bracket in BRACKET.finditer(text):
        if bracket[0][0] != '"':
            depth += 1 if bracket[1] else -1
            if depth > MOST_NESTED:
                raise ValueError(f"nested more than {MOST_NESTED} deep")


def json_object(text: str | bytes | None) -> dict[str, Any] | None:
    """The JSON object that a line is, or None."""
    try:
        value = loads(text or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def text_member(text: str, name: str) -> str | None:
    """A member of a JSON object that is text; None where it is none, or none that a file name can be.

    A lone surrogate is not replaced, as `loads` does: two paths would become one.
    """
    value = (json_object(text) or {}).get(name)
    if isinstance(value, str) and "?" in value and "\\u" in text:
        value = json.loads(text)[name]
        if any("\ud800" <= character <= "\udfff" for character in value):
            return None
    if isinstance(value, bool | int):  # as Polars finds them
        return json.dumps(value)
    return value if isinstance(value, str) else None


def raw_members(text: str) -> dict[str, tuple[str, str]]:
    """The members of a JSON object: name → (the name, the value) as they are written, the last of a repeated name.

    Values that are read and written again change: integers over 64 bits become floats, 1e400 and NaN become null, and
    nesting over 254 cannot be written at all. `text` must be an object that `json_object` reads.
    """
    members: dict[str, tuple[str, str]] = {}
    at = text.index("{") + 1
    while (member := MEMBER.match(text, at)) is not None:
        end = _value_end(text, member.end())
        # Within brackets a raw line break is white space; in a file of lines it would tear the row apart.
        value = text[member.end() : end].replace("\r", " ").replace("\n", " ")
        name = member[1]
        members[json.loads(name) if "\\" in name else name[1:-1]] = name, value
        comma = text.find(",", end)
        if comma < 0 or text[end:comma].strip():
            break
        at = comma + 1
    return members


def _value_end(text: str, start: int) -> int:
    """Where the value ends that begins at `start`."""
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
    """A line that is one JSON object, of texts that hold any number of members each."""
    texts = (text.encode() if isinstance(text, str) else text for text in members)
    return b"{" + b",".join(filter(None, texts)) + b"}\n"


def dumped(values: dict[str, Any]) -> bytes:
    """The members of an object as JSON text, without its braces."""
    return orjson.dumps(values)[1:-1]
