"""JSON as people and models write it, to values that a UTF-8 file can hold."""

import json
from typing import Any

import orjson


def loads(text: str | bytes) -> Any:
    """The value of a JSON text; what Python's `json` writes beyond the standard is taken too.

    NaN and infinities become floats (`orjson` writes them as null), lone surrogates become "?". Raises ValueError.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(text)
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_object(text: str | bytes | None) -> dict[str, Any] | None:
    """The JSON object that a line is, or None."""
    try:
        value = loads(text or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
