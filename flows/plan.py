"""Input → pending rows → chunks, with polars: memory stays flat in the number of rows already done."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from flows.errors import UsageError
from flows.json_text import json_object
from flows.shard import Shard
from flows.workspace import Workspace, read_json, write_json

PROBED_ROWS = 1000  # enough to tell a mistyped column name from a column that is often empty
ROW_GROUP = 8192  # of plan.parquet: reading a chunk decodes one or two of these
PATH_MISSING = pl.col("image_path").fill_null("") == ""
READ_AT_ONCE = 4 * ROW_GROUP  # where all chunks are read


@dataclass(frozen=True)
class Source:
    """The input, what its columns are called ("" where there are no captions), and which share of it is asked for."""

    path: Path
    image_column: str = "image_path"
    caption_column: str = "caption"
    shard: Shard | None = None

    @property
    def is_parquet(self) -> bool:
        """Parquet by its name; anything else is JSON lines, plain or compressed."""
        return self.path.suffix.lower() == ".parquet"

    def identity(self) -> dict[str, Any]:
        """Changes when the file or the meaning of its columns does."""
        return {
            "path": str(self.path.resolve()),
            "version": _version(self.path),
            "image_column": self.image_column,
            "shard": str(self.shard or ""),
        }


@dataclass(frozen=True)
class Chunk:
    """`length` consecutive rows of the plan; `digest` names its image paths."""

    number: int  # from 1
    offset: int
    length: int
    digest: str

    @property
    def name(self) -> str:
        """Names its part files and its task run."""
        return f"{self.number:06d}"


@dataclass(frozen=True)
class Counts:
    """What the input held. `already_done` counts distinct images that the output has had before the plan."""

    input: int = 0  # lines that are not blank
    distinct: int = 0
    already_done: int = 0
    malformed: int = 0
    without_path: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class Plan:
    """Rows without an answer, cut into chunks in input order; stays the same until all its chunks are complete."""

    counts: Counts
    chunks: list[Chunk]
    resumed: bool = False

    @property
    def rows(self) -> int:
        """Rows of all chunks."""
        return sum(chunk.length for chunk in self.chunks)


def check_source(source: Source) -> list[str]:
    """The columns of the first rows. Raises UsageError unless those that were named are among them."""
    path = source.path
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"input {str(path)!r} {what}: give a .jsonl (also .gz, .zst) or .parquet file")
    try:
        head = _scan(source).head(PROBED_ROWS).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        kind = "Parquet" if source.is_parquet else "JSON lines"
        raise UsageError(f"input {str(path)!r} cannot be read as {kind}: {error!s:.300}") from None
    rows = [row for row in map(json_object, head["row"]) if row]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        raise UsageError(f"input {str(path)!r} has no JSON object in its first {PROBED_ROWS} lines: one a line, please")
    for option, column in (("image", source.image_column), ("caption", source.caption_column)):
        if column and column not in columns:
            none = ', or "" for none' if option == "caption" else ""
            raise UsageError(
                f"input {str(path)!r} has no column {column!r}; it has {', '.join(map(repr, columns[:20]))}: "
                f"name the right one with --{option}-column{none}"
            )
    if head["image_path"].drop_nulls().replace("", None).is_null().all():
        raise UsageError(f"no row among the first {len(head)} of {path} has an image path in {source.image_column!r}")
    return columns


def make_plan(source: Source, workspace: Workspace, chunk_size: int) -> Plan:
    """Plans every distinct image that the output does not hold, and writes plan.parquet and plan.json."""
    lines = _lines(source)
    # Keys first, into a file: the rows are read twice, here, and when the pending ones are picked by line number.
    keys_file = workspace.plan_rows.with_suffix(".keys")
    _write_keys(lines, keys_file)
    keys = pl.scan_parquet(keys_file, glob=False)
    named = keys.filter(pl.col("image_path") != "")
    first = named.unique("image_path", keep="first", maintain_order=True)
    pending = first.join(done_paths(*workspace.outputs), on="image_path", how="anti", maintain_order="left")
    total, with_path, distinct, pending_keys = pl.collect_all(
        [keys.select(pl.len()), named.select(pl.len()), first.select(pl.len()), pending], engine="streaming"
    )
    counts = Counts(
        input=total.item(),
        distinct=distinct.item(),
        already_done=distinct.item() - len(pending_keys),
        duplicates=with_path.item() - distinct.item(),
        **_write_skipped(keys, workspace.skipped),
    )
    keys_file.unlink()
    if not counts.distinct and source.shard is None:
        raise UsageError(f"no row of {source.path} has an image path in column {source.image_column!r}")
    _write_rows(lines, pending_keys, workspace.plan_rows)
    chunks = list(_cut(workspace.plan_rows, chunk_size))
    _write_plan(workspace, source.identity(), counts, chunks)
    return Plan(counts, chunks)


def _lines(source: Source) -> pl.LazyFrame:
    """The lines that are not blank, of the shard that is asked for."""
    lines = _scan(source).filter(pl.col("row").str.strip_chars() != "")
    return lines if source.shard is None else lines.filter(source.shard.holds(pl.col("image_path")))


def _write_plan(workspace: Workspace, source: dict[str, Any], counts: Counts, chunks: list[Chunk]) -> None:
    plan = {"source": source, "counts": asdict(counts), "chunks": [asdict(chunk) for chunk in chunks]}
    write_json(workspace.plan_file, plan | {"outputs": _versions(workspace)})


def keep_plan(workspace: Workspace, source: Source, plan: Plan) -> None:
    """Lets the plan go on after a merge of ours, which has changed the output that it was made for."""
    _write_plan(workspace, source.identity(), plan.counts, plan.chunks)


def _versions(workspace: Workspace) -> list[list[int] | None]:
    return [_version(output) for output in workspace.outputs]


def _version(path: Path) -> list[int] | None:
    """Size in bytes and time of change in ns; None for a file that is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


def open_plan(workspace: Workspace) -> Plan | None:
    """The plan in progress, its `merged` column brought up to date with the output; None when there is none."""
    written = read_json(workspace.plan_file)
    if written is None or not workspace.plan_rows.exists():
        return None
    rows = pl.scan_parquet(workspace.plan_rows, glob=False).drop("merged")
    done = done_paths(*workspace.outputs).with_columns(merged=pl.lit(value=True))
    refreshed = workspace.plan_rows.with_suffix(".refreshed")
    rows.join(done, on="image_path", how="left", maintain_order="left").with_columns(
        pl.col("merged").fill_null(value=False)
    ).sink_parquet(refreshed, row_group_size=ROW_GROUP, engine="streaming")
    refreshed.replace(workspace.plan_rows)
    return Plan(Counts(**written["counts"]), [Chunk(**chunk) for chunk in written["chunks"]], resumed=True)


def plan_is_for(workspace: Workspace, source: Source) -> bool:
    """Whether the plan in progress was made from this very input and output: both may have been edited since."""
    written = read_json(workspace.plan_file)
    return (
        written is not None
        and written["source"] == source.identity()
        and written.get("outputs") == _versions(workspace)
    )


def remove_plan(workspace: Workspace) -> None:
    """Forgets the plan; plan.json goes first, for a plan without it does not count."""
    workspace.plan_file.unlink(missing_ok=True)
    workspace.plan_rows.unlink(missing_ok=True)


def read_chunk(workspace: Workspace, chunk: Chunk) -> pl.DataFrame:
    """The chunk's rows in input order.

    Columns: line (UInt32, from 1), image_path (String), row (String, the input's JSON object), merged (Boolean,
    the output had it when the plan was opened).
    """
    return next(read_chunks(workspace, [chunk]))[1]


def read_chunks(workspace: Workspace, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, pl.DataFrame]]:
    """Each of these consecutive chunks with its rows; some row groups' worth of them is in memory at a time."""
    rows = pl.scan_parquet(workspace.plan_rows, glob=False)
    at_once = max(1, READ_AT_ONCE // max((chunk.length for chunk in chunks), default=1))
    for first in range(0, len(chunks), at_once):
        some = chunks[first : first + at_once]
        start = some[0].offset
        frame = rows.slice(start, some[-1].offset + some[-1].length - start).collect()
        for chunk in some:
            yield chunk, frame.slice(chunk.offset - start, chunk.length)


def done_paths(*outputs: Path) -> pl.LazyFrame:
    """The distinct image paths of outputs, column image_path; a torn or malformed line holds none."""
    written = [_scan_lines(output) for output in outputs if output.exists() and output.stat().st_size]
    if not written:
        return pl.LazyFrame(schema={"image_path": pl.String})
    paths = pl.concat(written).select(image_path=_image_path("image_path"))
    return paths.filter(pl.col("image_path").is_not_null()).unique()


def _scan(source: Source) -> pl.LazyFrame:
    """Columns line, row (the JSON text) and image_path (null where there is none)."""
    if not source.is_parquet:
        return _scan_lines(source.path).with_columns(image_path=_image_path(source.image_column))
    columns = pl.scan_parquet(source.path, glob=False)
    schema = columns.collect_schema()
    writable = [name for name, dtype in schema.items() if not _holds_bytes(dtype)]
    if source.image_column not in writable:
        what = "holds bytes, not paths" if source.image_column in schema else "is not there"
        raise UsageError(
            f"column {source.image_column!r} of {str(source.path)!r} {what}; columns that can be used are "
            f"{', '.join(map(repr, writable))}: name the one with the image paths with --image-column"
        )
    path = pl.col(source.image_column).cast(pl.String)
    return columns.select(row=pl.struct(writable).struct.json_encode(), image_path=path).with_row_index(
        "line", offset=1
    )


def _holds_bytes(dtype: pl.DataType) -> bool:
    """Whether a column cannot be written as JSON: images in Parquet files often come as {bytes, path}."""
    if isinstance(dtype, pl.Struct):
        return any(_holds_bytes(field.dtype) for field in dtype.fields)  # type: ignore[arg-type]
    if isinstance(dtype, pl.List | pl.Array):
        return _holds_bytes(dtype.inner)  # type: ignore[arg-type]
    return dtype == pl.Binary or dtype == pl.Object


def _scan_lines(path: Path) -> pl.LazyFrame:
    """Columns line and row: a text file, plain, .gz or .zst, read as CSV of one column.

    Not scan_ndjson, which infers a schema and fails on the first line that breaks it; not scan_lines, which fails
    on the first byte that is not UTF-8. The separator is U+0001, which no JSON may hold: a line with one is malformed,
    and is put together again so that it stays so. No globs: a file may be called `labeled[1].jsonl`.
    """
    columns = pl.scan_csv(
        path,
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
        row_index_offset=1,
        glob=False,
    )
    return columns.select("line", row=pl.concat_str("row", pl.col("rest").fill_null(""), separator=""))


def _image_path(column: str) -> pl.Expr:
    """The image path in a JSON object as text; null where the text is no JSON object or has none."""
    json_path = f"$[{orjson.dumps(column).decode()}]"

    def paths(rows: pl.Series) -> pl.Series:
        found = rows.str.json_path_match(json_path)
        return found if found.null_count() == 0 else _with_lenient(found, rows, column)

    return pl.col("row").map_batches(paths, return_dtype=pl.String, is_elementwise=True)


def _with_lenient(found: pl.Series, rows: pl.Series, column: str) -> pl.Series:
    """Fills in what only Python's JSON reads: rows with NaN, infinities or lone surrogates."""
    values = found.to_list()
    for index in found.is_null().arg_true():
        value = (json_object(rows[index]) or {}).get(column)
        values[index] = value if isinstance(value, str) else None
    return pl.Series(found.name, values, dtype=pl.String)


def _write_keys(lines: pl.LazyFrame, path: Path) -> None:
    """Writes line, image_path, and of lines without one the row."""
    row = pl.when(PATH_MISSING).then("row")
    lines.select("line", "image_path", row=row).sink_parquet(path, row_group_size=ROW_GROUP, engine="streaming")


def _write_skipped(keys: pl.LazyFrame, path: Path) -> dict[str, int]:
    """Writes line number and reason of every line that is no new image; counts malformed and without_path."""
    without_path = keys.filter(PATH_MISSING).select(
        "line",
        reason=pl.when(pl.col("row").str.json_path_match("$").is_null())
        .then(pl.lit("malformed"))
        .otherwise(pl.lit("without_path")),
    )
    named = keys.filter(~PATH_MISSING)
    first_line = named.group_by("image_path").agg(first=pl.col("line").min(), copies=pl.len())
    repeated = first_line.filter(pl.col("copies") > 1).select("image_path", "first")
    duplicates = (
        named.join(repeated, on="image_path")
        .filter(pl.col("line") != pl.col("first"))
        .select("line", reason=pl.format("duplicate of line {}", "first"))
    )
    skipped = pl.concat([without_path, duplicates]).collect(engine="streaming").sort("line")
    if skipped.is_empty():
        path.unlink(missing_ok=True)
    else:
        skipped.write_ndjson(path)
    return {reason: len(skipped.filter(pl.col("reason") == reason)) for reason in ("malformed", "without_path")}


def _write_rows(lines: pl.LazyFrame, pending_keys: pl.DataFrame, path: Path) -> None:
    lines.select("line", "row").join(pending_keys.lazy(), on="line", maintain_order="left").select(
        "line", "image_path", "row", merged=pl.lit(value=False)
    ).sink_parquet(path, row_group_size=ROW_GROUP, engine="streaming")


def _cut(rows: Path, chunk_size: int) -> Iterator[Chunk]:
    paths = pl.scan_parquet(rows, glob=False).select("image_path").collect()["image_path"]
    for number, offset in enumerate(range(0, len(paths), chunk_size), start=1):
        chunk = paths.slice(offset, chunk_size).to_list()
        digest = hashlib.blake2b("\0".join(chunk).encode(), digest_size=16).hexdigest()
        yield Chunk(number, offset, len(chunk), digest)
