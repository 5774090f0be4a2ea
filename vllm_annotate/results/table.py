"""Outputs in Parquet: what most readers want as typed columns, and each row whole, as JSON."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.polars_faults import polars_faults
from vllm_annotate.inputs.source import scan_table
from vllm_annotate.storage.atomic import replacing_path
from vllm_annotate.storage.json_text import json_object, raw_members
from vllm_annotate.storage.packed import ROW

# The same in every file, whatever columns its input has: so the files of a folder can be read as one table.
COLUMNS: dict[str, Any] = {
    "image_path": pl.String,
    "caption": pl.String,
    "rationale": pl.String,
    "objects": pl.List(pl.Struct({"name": pl.String, "bbox": pl.Array(pl.Int16, 4)})),
    "width": pl.Int32,
    "height": pl.Int32,
    "flags": pl.List(pl.String),
}
SCHEMA: dict[str, Any] = COLUMNS | {ROW: pl.String}
GROUP_ROWS = 5_000  # of the file: a row has some kilobytes
ROWS_AT_ONCE = 250  # converted without a break, in which nothing else of this process can work: 10 ms


def add_rows(target: Path, rows: Path) -> None:
    """Replaces a table with what it had, and the rows of a file of lines.

    Raises UsageError if it has other columns than a run writes, or cannot be read.
    """

    def groups(*_: Any) -> Iterator[pl.DataFrame]:
        if target.exists():
            yield from pl.scan_parquet(target, glob=False).collect_batches(maintain_order=True)
        with rows.open("rb") as lines:
            while group := list(islice(lines, ROWS_AT_ONCE)):
                yield table_of(group)
        yield pl.DataFrame(schema=SCHEMA)  # no image may have an answer

    try:
        check_columns(target)
        with replacing_path(target) as unfinished, polars_faults(target):
            table = register_io_source(groups, schema=SCHEMA)
            table.sink_parquet(unfinished, compression="zstd", row_group_size=GROUP_ROWS)
    except pl.exceptions.PolarsError as error:
        what = "is truncated or corrupt, restore it" if target.exists() else "cannot be written"
        raise UsageError(f"{target} {what}: {error!s:.200}") from None


def check_columns(table: Path) -> None:
    """Raises UsageError if a table, which need not exist, has other columns than a run writes, and Polars' errors."""
    if table.exists() and pl.read_parquet_schema(table) != pl.Schema(SCHEMA):
        raise UsageError(f"{table} has other columns than a run writes: move it away, and its images are asked again")


def table_of(lines: Sequence[bytes]) -> pl.DataFrame:
    """Returns lines of an output as a table."""
    return pl.DataFrame([_record(line) for line in lines], schema=SCHEMA)


def _record(line: bytes) -> dict[str, Any]:
    text = line.decode(errors="replace").removesuffix("\n")
    row = json_object(text) or {}
    annotations, caption = row.get("annotations"), row.get("caption")
    if not isinstance(caption, str | None):  # a column of the input, of a run without captions
        caption = raw_members(text)["caption"][1]
    return {name: row.get(name) for name in ("image_path", "width", "height", "flags")} | {
        "caption": caption,
        "rationale": annotations and annotations["rationale"],
        "objects": annotations and row["objects"],
        ROW: text,
    }


def lines_of_table(path: Path) -> Iterator[bytes]:
    """Yields the rows of a table as lines. Raises what `scan_table` does."""
    for batch in scan_table(path).collect_batches(maintain_order=True):
        for row in batch[ROW]:
            yield row.encode() + b"\n"
