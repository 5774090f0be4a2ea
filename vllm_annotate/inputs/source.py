"""Lines of the input and of outputs, with the image path of each."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from vllm_annotate.errors import EmptyInput, UsageError
from vllm_annotate.inputs.hints import remedy
from vllm_annotate.inputs.selection import ALL, Selection
from vllm_annotate.inputs.sharding import in_shard
from vllm_annotate.storage.file_states import Version, file_version, version_at
from vllm_annotate.storage.json_text import json_object, text_member
from vllm_annotate.storage.packed import ROW, TABLE
from vllm_annotate.storage.shard import Shard

PARQUET, PARQUET_SUFFIXES = b"PAR1", (".parquet", ".pq", ".parq")
PROBED_ROWS = 1000  # enough to distinguish a mistyped column name from a column that is often empty
PATH_MISSING = pl.col("image_path").fill_null("") == ""


@dataclass(frozen=True)
class Source:
    """The input, its column names (`caption_column` is "" if there are no captions), and which of its images.

    The rows of an `origin` with images inside, a tar for example, are in a file of JSON lines at `path`.
    """

    path: Path
    image_column: str = "image_path"
    caption_column: str = "caption"
    shard: Shard | None = None
    selection: Selection = ALL
    dropped: tuple[str, ...] = ()  # columns that do not go into answers

    origin: Path | str | None = None
    origin_version: Version = None  # when its rows were read
    origin_column: str = ""  # with its images

    @property
    def given(self) -> Path | str:
        """The file or URL that a user knows."""
        return self.origin or self.path

    @cached_property
    def is_parquet(self) -> bool:
        """Whether it is read as Parquet; anything else is JSON lines, plain or compressed."""
        return is_parquet(self.path)

    def identity(self) -> dict[str, Any]:
        """Returns values that change when the file, the image column, the shard or the selection does."""
        # Earlier plans have none.
        chosen: dict[str, Any] = {"selection": asdict(self.selection)} if self.selection else {}
        if self.origin is not None:  # its rows are others with another caption column
            chosen |= {"origin_column": self.origin_column, "caption_column": self.caption_column}
        return {
            "path": os.path.realpath(self.given) if isinstance(self.given, Path) else self.given,
            "version": file_version(self.path) if self.origin is None else self.origin_version,
            "image_column": self.image_column,
            "shard": str(self.shard or ""),
        } | chosen

    def has_changed(self) -> bool:
        """Whether an origin is another file than the one whose rows were read, if that can be told now."""
        try:
            return self.origin is not None and version_at(self.origin) != self.origin_version
        except OSError:
            return False


def is_parquet(path: Path) -> bool:
    """Whether the name of a file or its first bytes say Parquet."""
    if path.suffix.lower() in PARQUET_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET)) == PARQUET
    except OSError:
        return False


def check_source(source: Source) -> list[str]:
    """Returns the columns of the first rows. Raises UsageError if a named column is not among them."""
    path, given = source.path, source.given
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"input {str(given)!r} {what}: give a .jsonl (also .gz, .zst), .parquet or .tar file")
    try:
        head = _head(source)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        kind = "Parquet" if source.is_parquet else "JSON lines"
        raise UsageError(
            f"input {str(given)!r} cannot be read as {kind} ({error!s:.300}): if it is truncated or corrupt, restore it"
        ) from None
    if source.is_parquet and not len(head):
        raise EmptyInput(f"input {str(given)!r} has no rows: write one per image")
    rows = [row for row in map(json_object, head["row"]) if row]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not rows or head["row"][0].strip() == "[":  # the last row of an array may be an object, on its own line
        why = "is a JSON array" if rows else f"has no JSON object in its first {PROBED_ROWS} lines"
        raise UsageError(f"input {str(given)!r} {why}: {remedy(path, head['row'].to_list())}")
    for option, column in (("image", source.image_column), ("caption", source.caption_column)):
        if column and column not in columns:
            none = ', or "" for none' if option == "caption" else ""
            raise UsageError(
                f"input {str(given)!r} has no column {column!r}; it has {', '.join(map(repr, columns[:20]))}: "
                f"set --{option}-column to one of them{none}"
            )
    if head["image_path"].drop_nulls().replace("", None).is_null().all():
        raise UsageError(
            f"none of the first {len(head)} rows of {given} has an image path in column {source.image_column!r}: set "
            "--image-column to the column with the image paths"
        )
    return columns


def left_out(source: Source) -> list[str]:
    """Returns the columns that cannot be written as JSON: those with bytes."""
    if not source.is_parquet:
        return []
    schema = pl.scan_parquet(source.path, glob=False).collect_schema()
    return [name for name, dtype in schema.items() if holds_bytes(dtype)]


def not_utf_8(source: Source) -> int:
    """Returns how many of the first rows have U+FFFD, as which bytes that are not UTF-8 are read."""
    if source.is_parquet:
        return 0
    return int(_head(source)["row"].str.contains("\ufffd", literal=True).sum())


def _head(source: Source) -> pl.DataFrame:
    """The first rows, as `_scan`. Of lines no more are read than these, and no path but theirs is looked for."""
    if source.is_parquet:
        return _scan(source).head(PROBED_ROWS).collect()
    lines = _scan_lines(source.path).head(PROBED_ROWS).collect()
    return lines.with_columns(image_path=_image_path(source.image_column))


def input_lines(source: Source) -> pl.LazyFrame:
    """Returns columns line (from 1), row and image_path of the shard's lines that are not blank."""
    lines = _scan(source).filter(pl.col("row").str.strip_chars() != "")
    return lines if source.shard is None else lines.filter(in_shard(source.shard, pl.col("image_path")))


def input_rows(source: Source) -> Iterator[str]:
    """Yields the text of each row, blank ones included, without holding more than some thousands at once."""
    for rows in _scan(source).select("row").collect_batches(maintain_order=True):
        yield from rows["row"]


def output_lines(*outputs: Path) -> pl.LazyFrame:
    """Returns columns line and image_path of outputs' lines that are not blank; null for a torn or malformed line."""
    written = [_scan_output(output) for output in outputs if output.exists() and output.stat().st_size]
    if not written:
        return pl.LazyFrame(schema={"line": pl.UInt32, "image_path": pl.String})
    lines = pl.concat(written).filter(pl.col("row").str.strip_chars() != "")
    return lines.select("line", image_path=_image_path("image_path"))


def _scan_output(output: Path) -> pl.LazyFrame:
    if output.suffix != TABLE:
        return _scan_lines(output)
    return scan_table(output).with_row_index("line", offset=1)


def scan_table(path: Path) -> pl.LazyFrame:
    """Returns the rows of a table, column `row`. Raises UsageError if it has none, and Polars' errors."""
    table = pl.scan_parquet(path, glob=False)
    if table.collect_schema().get(ROW) != pl.String:
        raise UsageError(
            f"{path} has no column {ROW!r} of texts, so no run has written it: move it away, or name another file"
        )
    return table.select(ROW).drop_nulls()


def output_lines_from(output: Path, offset: int, lines: int) -> pl.LazyFrame:
    """Returns the columns of `output_lines` of what follows the first `offset` bytes, which have so many `lines`.

    Reads it into memory.
    """
    with output.open("rb") as file:
        file.seek(offset)
        rows = _scan_lines(file.read(), lines + 1).filter(pl.col("row").str.strip_chars() != "")
    return rows.select("line", image_path=_image_path("image_path"))


def done_paths(*outputs: Path) -> pl.LazyFrame:
    """Returns the distinct image paths of outputs, column image_path."""
    return distinct_paths(output_lines(*outputs))


def distinct_paths(lines: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the distinct image paths of lines, column image_path."""
    return lines.select("image_path").filter(pl.col("image_path").is_not_null()).unique()


def _scan(source: Source) -> pl.LazyFrame:
    """Returns columns line, row (the JSON text) and image_path (null if missing)."""
    if not source.is_parquet:
        return _scan_lines(source.path).with_columns(image_path=_image_path(source.image_column))
    columns = pl.scan_parquet(source.path, glob=False)
    schema = columns.collect_schema()
    writable = _writable(schema)
    if source.image_column not in writable:
        what = "contains bytes, not paths" if source.image_column in schema else "does not exist"
        raise UsageError(
            f"column {source.image_column!r} of {str(source.path)!r} {what}: set --image-column to the one with the "
            f"image paths; usable columns are {', '.join(map(repr, writable))}"
        )
    if (dtype := schema[source.image_column]).is_nested():
        raise UsageError(
            f"column {source.image_column!r} of {str(source.path)!r} contains {dtype}, not paths: write a column of "
            "texts, and set --image-column to it"
        )
    path = pl.col(source.image_column).cast(pl.String)
    return columns.select(row=pl.struct(writable).struct.json_encode(), image_path=path).with_row_index(
        "line", offset=1
    )


def json_rows(path: Path, but: str) -> Iterator[str]:
    """Yields the rows of a Parquet file as JSON, with all columns that can be written so, but for one."""
    columns = pl.scan_parquet(path, glob=False)
    names = [name for name in _writable(columns.collect_schema()) if name != but]
    if not names:
        yield from ["{}"] * columns.select(pl.len()).collect().item()
        return
    rows = columns.select(row=pl.struct(names).struct.json_encode())
    for batch in rows.collect_batches(maintain_order=True):
        yield from batch["row"]


def _writable(schema: pl.Schema) -> list[str]:
    return [name for name, dtype in schema.items() if not holds_bytes(dtype)]


def holds_bytes(dtype: pl.DataType) -> bool:
    """Whether a column cannot be written as JSON: images in Parquet files are often {bytes, path}."""
    if isinstance(dtype, pl.Struct):
        return any(holds_bytes(field.dtype) for field in dtype.fields)  # type: ignore[arg-type]
    if isinstance(dtype, pl.List | pl.Array):
        return holds_bytes(dtype.inner)  # type: ignore[arg-type]
    return dtype == pl.Binary or dtype == pl.Object


def _scan_lines(text: Path | bytes, first_line: int = 1) -> pl.LazyFrame:
    """Returns columns line and row of a text or a file, plain, .gz or .zst, read as CSV with one column.

    Not scan_ndjson, which infers a schema and fails on the first line that violates it; not scan_lines, which fails on
    the first byte that is not UTF-8. The separator is U+0001, which valid JSON cannot contain: a line with one is
    joined again, and so stays malformed. No globs: a file may be named `labeled[1].jsonl`.
    """
    columns = pl.scan_csv(
        text,
        has_header=False,
        separator="\x01",
        quote_char=None,
        encoding="utf8-lossy",
        schema={"row": pl.String, "rest": pl.String},
        missing_columns="insert",
        extra_columns="ignore",
        truncate_ragged_lines=True,
        raise_if_empty=False,
        row_index_name="line",
        row_index_offset=first_line,
        glob=False,
    )
    whole = pl.concat_str(pl.col("row").fill_null(""), "rest", separator="\x01")
    return columns.select(
        "line", row=pl.when(pl.col("rest").is_null()).then(pl.col("row").fill_null("")).otherwise(whole)
    )


def _image_path(column: str) -> pl.Expr:
    """Returns the image path in a JSON text; null if it is not an object or has none."""
    found = pl.col("row").str.json_path_match(f"$[{orjson.dumps(column).decode()}]")

    def paths(both: Sequence[pl.Series]) -> pl.Series:
        found, rows = both
        return found if found.null_count() == 0 else _with_lenient(found, rows, column)

    return pl.map_batches([found, pl.col("row")], paths, return_dtype=pl.String, is_elementwise=True)


def _with_lenient(found: pl.Series, rows: pl.Series, column: str) -> pl.Series:
    """Fills in rows that only Python's JSON parses: NaN, infinities, lone surrogates, deep nesting."""
    values = found.to_list()
    for index in found.is_null().arg_true():
        values[index] = text_member(rows[index], column)
    return pl.Series(found.name, values, dtype=pl.String)
