"""The input's other columns: what type each has as a column of Parquet."""

import re
from collections.abc import Iterator
from typing import Any

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.export.rows import RUN_FIELDS, Labeled
from vllm_annotate.results.reviewed import REVIEW_FIELDS
from vllm_annotate.storage.json_text import loads, raw_members

OURS = {"image_path", "caption", "rationale", "objects", "width", "height", "flags", "agreement"}
TYPES = {"text": pl.String, "json": pl.String, "boolean": pl.Boolean, "integer": pl.Int64, "number": pl.Float64}
INTEGER = re.compile(r"-?\d{1,18}")  # fits 64 bits
NUMBER = re.compile(r"-?\d{1,200}(?:\.\d+(?:[eE][+-]?\d{1,2})?|[eE][+-]?\d{1,2})")  # finite, and no long integer
MAX_COLUMNS = 1000
Kinds = dict[str, str]


def kind_of(value: str) -> str:
    """Returns the kind of a JSON value as written; empty for null."""
    if value[0] == '"':
        return "text"
    if value in ("true", "false"):
        return "boolean"
    if value == "null":
        return ""
    if INTEGER.fullmatch(value):
        return "integer"
    return "number" if NUMBER.fullmatch(value) else "json"


def add_kinds(kinds: Kinds, row: Labeled) -> None:
    """Notes the kinds of a row's other columns. Values of several kinds become JSON. Raises UsageError for too many."""
    for name, value in others(row):
        kind, known = kind_of(value), kinds.get(name, "")
        if kind and known and kind != known:
            kind = "number" if {kind, known} == {"integer", "number"} else "json"
        kinds[name] = kind or known
        if len(kinds) > MAX_COLUMNS:
            raise UsageError(
                f"the rows have over {MAX_COLUMNS} columns beside those of a run, {name!r:.60} among them: a table "
                "cannot have one for each; export to another format, or gather them in one column"
            )


def others(row: Labeled) -> Iterator[tuple[str, str]]:
    """Yields name and value, as written, of the columns that are not ours. One named as a column here gets a prefix."""
    members = raw_members(row.text) if row.text else {}
    # Who reviewed a row is not published: an address may be in it. A review has no text of the model, also in a file
    # of another name; in a row of a run these are the user's own columns.
    is_review = row.reviewed or ("vlm_output" not in members and members.get("reviewed", ("", ""))[1] == "true")
    for name, (_, value) in members.items():
        if name not in RUN_FIELDS and not (is_review and name in REVIEW_FIELDS):
            yield (f"input_{name}" if name in OURS else name), value


def typed(row: Labeled, kinds: Kinds) -> dict[str, Any]:
    """Returns the values of a row's other columns."""
    return {name: _value(value, kinds[name]) for name, value in others(row)}


def _value(written: str, kind: str) -> Any:
    if written == "null":
        return None
    if kind == "json":
        return written
    return float(loads(written)) if kind == "number" else loads(written)


def schema_of(kinds: Kinds) -> dict[str, Any]:
    """Returns the types of the columns; one that is always null is text."""
    return {name: TYPES[kind or "text"] for name, kind in kinds.items()}
