"""The rows of a plan: those of the input that have no answer, with Polars, in plan.parquet."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.done_index import written_lines
from vllm_annotate.inputs.plan_file import Chunk, Counts, chunk_length
from vllm_annotate.inputs.polars_faults import polars_faults
from vllm_annotate.inputs.raw_paths import without_broken_paths
from vllm_annotate.inputs.source import PATH_MISSING, Source, distinct_paths, input_lines, output_lines
from vllm_annotate.storage.atomic import sync_file
from vllm_annotate.storage.workspace import Workspace

SMALL_BYTES = 16 * 1024**2
ROW_GROUP = 8192  # of plan.parquet: reading a chunk decodes one or two


def plan_rows(source: Source, workspace: Workspace, chunk_size: int) -> tuple[Counts, list[Chunk]]:
    """Writes plan.parquet. Reads a large input twice: for the keys, then for the pending rows."""
    lines = _held(input_lines(source), source.path)
    written = _held(written_lines(workspace), *workspace.outputs)
    keys_file = workspace.plan_rows.with_suffix(".keys")
    keys = _keys(source, lines, keys_file)
    named, all_distinct, selected, pending = _pending(source, keys, written)
    broken = written.filter(pl.col("image_path").is_null()).select(pl.len(), first=pl.col("line").min())
    counted = [keys, named, all_distinct, selected]
    total, with_path, found, distinct, broken_lines, pending_keys = pl.collect_all(
        [*(rows.select(pl.len()) for rows in counted), broken, pending], engine="streaming"
    )
    is_any_skipped = total.item() > found.item()
    counts = Counts(
        input=total.item(),
        distinct=distinct.item(),
        not_selected=found.item() - distinct.item(),
        already_done=distinct.item() - len(pending_keys),
        duplicates=with_path.item() - found.item(),
        broken_in_output=broken_lines["len"].item(),
        first_broken=broken_lines["first"].item() or 0,
        **(_write_skipped(keys, workspace.skipped) if is_any_skipped else {}),
    )
    if not is_any_skipped:
        workspace.skipped.unlink(missing_ok=True)
    keys_file.unlink(missing_ok=True)
    if not counts.distinct and source.shard is None:
        raise UsageError(
            f"no row of {source.given} has an image path in column {source.image_column!r}: set --image-column to the "
            "column with the image paths"
        )
    _write_rows(lines, pending_keys, workspace.plan_rows)
    return counts, list(_cut(workspace.plan_rows, chunk_size))


def count_open(source: Source, *answered: Path) -> tuple[int, int, int]:
    """Counts the distinct images, those selected, and those of them without an answer in any of these files.

    Writes nothing beside them.
    """
    with TemporaryDirectory(prefix="vllm-annotate-") as folder:
        lines = _held(input_lines(source), source.path)
        keys = _keys(source, lines, Path(folder) / "keys.parquet")
        _, *counted = _pending(source, keys, output_lines(*answered))
        found, selected, pending = pl.collect_all([rows.select(pl.len()) for rows in counted], engine="streaming")
    return found.item(), selected.item(), pending.item()


def _held(lines: pl.LazyFrame, *files: Path) -> pl.LazyFrame:
    """The lines of files, read into memory if these are small: a corpus may have thousands of them."""
    return lines.collect().lazy() if all(map(_is_small, files)) else lines


def _is_small(path: Path) -> bool:
    """Whether a file is text of few bytes. A compressed one may be any size."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{" and path.stat().st_size <= SMALL_BYTES
    except FileNotFoundError:
        return True


def _keys(source: Source, lines: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    """Returns columns line, image_path, and row for lines without one; without paths that cannot be.

    Those of a small input are in memory, those of a large one are written to the file first.
    """
    keys = lines.select("line", "image_path", row=pl.when(PATH_MISSING).then("row"))
    if not _is_small(source.path):
        sink_rows(keys, path)
        keys = pl.scan_parquet(path, glob=False)
    return without_broken_paths(source, keys)


def _pending(source: Source, keys: pl.LazyFrame, written: pl.LazyFrame) -> tuple[pl.LazyFrame, ...]:
    """Returns the rows with a path, the distinct ones, those of them that are selected, and those not written yet."""
    named = keys.filter(pl.col("image_path") != "")
    distinct = named.unique("image_path", keep="first", maintain_order=True)
    selected = source.selection.of(distinct)
    return (
        named,
        distinct,
        selected,
        selected.join(distinct_paths(written), on="image_path", how="anti", maintain_order="left"),
    )


def _write_skipped(keys: pl.LazyFrame, path: Path) -> dict[str, int]:
    """Writes line number and reason of every skipped line; returns the counts of malformed and without_path."""
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
        with polars_faults(path):
            skipped.write_ndjson(path)
    return {reason: len(skipped.filter(pl.col("reason") == reason)) for reason in ("malformed", "without_path")}


def _write_rows(lines: pl.LazyFrame, pending_keys: pl.DataFrame, path: Path) -> None:
    rows = lines.select("line", "row").join(pending_keys.lazy(), on="line", maintain_order="left")
    sink_rows(rows.select("line", "image_path", "row", merged=pl.lit(value=False)), path)
    sync_file(path)


def sink_rows(rows: pl.LazyFrame, path: Path) -> None:
    """Writes rows to a Parquet file, with bounded memory."""
    with polars_faults(path):
        rows.sink_parquet(path, row_group_size=ROW_GROUP, engine="streaming")


def _cut(rows: Path, chunk_size: int) -> Iterator[Chunk]:
    paths = pl.scan_parquet(rows, glob=False).select("image_path").collect()["image_path"]
    length = chunk_length(len(paths), chunk_size)
    lengths = [min(length, len(paths) - offset) for offset in range(0, len(paths), length)]
    return chunks_of(paths, lengths)


def chunks_of(paths: pl.Series, lengths: Sequence[int]) -> Iterator[Chunk]:
    """Yields consecutive chunks of these lengths; `paths` are the image paths of all rows."""
    offset = 0
    for number, length in enumerate(lengths, start=1):
        chunk = paths.slice(offset, length).to_list()
        digest = hashlib.blake2b("\0".join(chunk).encode(), digest_size=16).hexdigest()
        yield Chunk(number, offset, len(chunk), digest)
        offset += length
