"""Input → pending rows → chunks, with Polars. Memory does not grow with the number of rows already done."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.done_index import index_output, written_lines
from vllm_annotate.inputs.plan_file import (
    Chunk,
    Counts,
    Plan,
    PlanFile,
    chunk_length,
    read_plan_file,
    write_plan_file,
)
from vllm_annotate.inputs.polars_faults import polars_faults
from vllm_annotate.inputs.raw_paths import without_broken_paths
from vllm_annotate.inputs.source import PATH_MISSING, Source, distinct_paths, input_lines, output_lines
from vllm_annotate.storage.appends import only_appended
from vllm_annotate.storage.atomic import replacing_path, sync_file, sync_folder
from vllm_annotate.storage.file_states import FileState, file_state, file_version
from vllm_annotate.storage.workspace import Workspace

ROW_GROUP = 8192  # of plan.parquet: reading a chunk decodes one or two
READ_AT_ONCE = 4 * ROW_GROUP  # rows in memory when all chunks are read
PLAN_TRIES = 3  # if input or output change meanwhile
POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def make_plan(source: Source, workspace: Workspace, chunk_size: int) -> Plan:
    """Plans every distinct image that is not in the output, and writes plan.parquet and plan.json.

    Input and output are read more than once. If either changes meanwhile, rows could get the captions of others, or be
    sent although they are done: the plan is made again. Raises UsageError if it keeps changing.
    """
    index_output(workspace)
    for _ in range(PLAN_TRIES):
        before, identity, outputs = _states(source, workspace), source.identity(), output_versions(workspace)
        try:
            counts, chunks = _plan_rows(source, workspace, chunk_size)
        except POLARS_ERRORS:
            if _states(source, workspace) == before:
                raise
            continue
        if _states(source, workspace) == before:
            break
    else:
        files = " or ".join(map(str, (source.given, *workspace.outputs)))
        raise UsageError(f"{files} changed during {PLAN_TRIES} attempts to read it: run again once it is complete")
    workspace.appends.unlink(missing_ok=True)  # it belongs to the plan before
    write_plan_file(workspace, PlanFile(identity, counts, chunks, outputs))
    return Plan(counts, chunks, outputs=outputs)


def _states(source: Source, workspace: Workspace) -> list[FileState | None]:
    return [file_state(path) for path in (source.path, *workspace.outputs)]


def _plan_rows(source: Source, workspace: Workspace, chunk_size: int) -> tuple[Counts, list[Chunk]]:
    """Writes plan.parquet. Reads the input twice: for the keys, then for the pending rows."""
    lines, written = input_lines(source), written_lines(workspace)
    keys_file = workspace.plan_rows.with_suffix(".keys")
    keys = _keys(source, lines, keys_file)
    named, all_distinct, selected, pending = _pending(source, keys, written)
    broken = written.filter(pl.col("image_path").is_null()).select(pl.len(), first=pl.col("line").min())
    counted = [keys, named, all_distinct, selected]
    total, with_path, found, distinct, broken_lines, pending_keys = pl.collect_all(
        [*(rows.select(pl.len()) for rows in counted), broken, pending], engine="streaming"
    )
    counts = Counts(
        input=total.item(),
        distinct=distinct.item(),
        not_selected=found.item() - distinct.item(),
        already_done=distinct.item() - len(pending_keys),
        duplicates=with_path.item() - found.item(),
        broken_in_output=broken_lines["len"].item(),
        first_broken=broken_lines["first"].item() or 0,
        **_write_skipped(keys, workspace.skipped),
    )
    keys_file.unlink()
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
        keys = _keys(source, input_lines(source), Path(folder) / "keys.parquet")
        _, *counted = _pending(source, keys, output_lines(*answered))
        found, selected, pending = pl.collect_all([rows.select(pl.len()) for rows in counted], engine="streaming")
    return found.item(), selected.item(), pending.item()


def _keys(source: Source, lines: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    """Writes the keys of the lines to a file, and returns them without paths that cannot be."""
    _write_keys(lines, path)
    return without_broken_paths(source, pl.scan_parquet(path, glob=False))


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


def keep_plan(workspace: Workspace, source: Source, plan: Plan) -> None:
    """Updates the plan after our own merge changed the output, so that it can be resumed."""
    outputs, counts = output_versions(workspace), replace(plan.counts, taken=0)  # those were reported
    write_plan_file(workspace, PlanFile(source.identity(), counts, plan.chunks, outputs))
    workspace.appends.unlink(missing_ok=True)


def plan_with_taken(workspace: Workspace, source: Source, plan: Plan, taken: int) -> Plan:
    """Updates the plan with the number of answers that its parts already have."""
    plan = replace(plan, counts=replace(plan.counts, taken=taken))
    write_plan_file(workspace, PlanFile(source.identity(), plan.counts, plan.chunks, plan.outputs))
    return plan


def output_versions(workspace: Workspace) -> list[list[int] | None]:
    """Returns the file version of each output; it changes when a program writes to it."""
    return [file_version(output) for output in workspace.outputs]


def open_plan(workspace: Workspace) -> Plan | None:
    """Returns the plan in progress, with its `merged` column updated from the output.

    None if it does not exist or cannot be read; its parts can still be settled.
    """
    written = read_plan_file(workspace)
    if written is None or not _rows_are_readable(workspace, written):
        return None
    outputs = output_versions(workspace)
    if written.outputs == outputs:
        workspace.appends.unlink(missing_ok=True)  # nothing was appended since the plan was written
    rows = pl.scan_parquet(workspace.plan_rows, glob=False).drop("merged")
    done = distinct_paths(written_lines(workspace)).with_columns(merged=pl.lit(value=True))
    marked = rows.join(done, on="image_path", how="left", maintain_order="left").with_columns(
        pl.col("merged").fill_null(value=False)
    )
    with replacing_path(workspace.plan_rows) as path:
        _sink(marked, path)
    return Plan(written.counts, written.chunks, resumed=True, outputs=outputs)


def _rows_are_readable(workspace: Workspace, written: PlanFile) -> bool:
    """Whether plan.parquet is readable to its last row and matches plan.json."""
    try:
        rows = pl.scan_parquet(workspace.plan_rows, glob=False)
        paths, _ = pl.collect_all(
            [
                rows.select("image_path"),
                rows.select(pl.col("row").str.len_bytes().sum(), pl.col("line", "merged").sum()),
            ],
            engine="streaming",
        )
    except (*POLARS_ERRORS, OSError):
        return False
    return list(_chunks(paths["image_path"], [chunk.length for chunk in written.chunks])) == written.chunks


def plan_is_for(workspace: Workspace, source: Source) -> bool:
    """Whether the plan in progress was made from this input and output, unchanged since but for its own answers."""
    written = read_plan_file(workspace)
    if written is None or written.source != source.identity():
        return False
    outputs = output_versions(workspace)
    if not written.outputs or written.outputs[1:] != outputs[1:]:
        return False
    before = written.outputs[0]
    return before == outputs[0] or only_appended(workspace.appends, before, workspace.output)


def input_has_changed(workspace: Workspace, source: Source) -> bool:
    """Whether the input changed since the plan in progress was made."""
    written = read_plan_file(workspace)
    return written is not None and (written.source != source.identity() or source.has_changed())


def remove_plan(workspace: Workspace) -> None:
    """Removes the plan, and what only serves it.

    plan.json goes first, and durably: it must not reappear beside another plan's rows.
    """
    workspace.plan_file.unlink(missing_ok=True)
    sync_folder(workspace.work)
    for path in (workspace.plan_rows, workspace.plan_rows.with_suffix(".keys"), workspace.appends):
        path.unlink(missing_ok=True)
    shutil.rmtree(workspace.cache, ignore_errors=True)  # results of its chunks


def read_chunk(workspace: Workspace, chunk: Chunk) -> pl.DataFrame:
    """Returns the chunk's rows in input order.

    Columns: line (UInt32, from 1), image_path (String), row (String, the input's JSON object), merged (Boolean: in the
    output when the plan was opened).
    """
    return next(read_chunks(workspace, [chunk]))[1]


def read_chunks(workspace: Workspace, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, pl.DataFrame]]:
    """Yields consecutive chunks with their rows; about READ_AT_ONCE rows are in memory at a time."""
    rows = pl.scan_parquet(workspace.plan_rows, glob=False)
    at_once = max(1, READ_AT_ONCE // max((chunk.length for chunk in chunks), default=1))
    for first in range(0, len(chunks), at_once):
        some = chunks[first : first + at_once]
        start = some[0].offset
        frame = rows.slice(start, some[-1].offset + some[-1].length - start).collect()
        for chunk in some:
            yield chunk, frame.slice(chunk.offset - start, chunk.length)


def _write_keys(lines: pl.LazyFrame, path: Path) -> None:
    """Writes columns line, image_path, and row for lines without an image path."""
    row = pl.when(PATH_MISSING).then("row")
    _sink(lines.select("line", "image_path", row=row), path)


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
    _sink(rows.select("line", "image_path", "row", merged=pl.lit(value=False)), path)
    sync_file(path)


def _sink(rows: pl.LazyFrame, path: Path) -> None:
    with polars_faults(path):
        rows.sink_parquet(path, row_group_size=ROW_GROUP, engine="streaming")


def _cut(rows: Path, chunk_size: int) -> Iterator[Chunk]:
    paths = pl.scan_parquet(rows, glob=False).select("image_path").collect()["image_path"]
    length = chunk_length(len(paths), chunk_size)
    lengths = [min(length, len(paths) - offset) for offset in range(0, len(paths), length)]
    return _chunks(paths, lengths)


def _chunks(paths: pl.Series, lengths: Sequence[int]) -> Iterator[Chunk]:
    """Yields consecutive chunks of these lengths; `paths` are the image paths of all rows."""
    offset = 0
    for number, length in enumerate(lengths, start=1):
        chunk = paths.slice(offset, length).to_list()
        digest = hashlib.blake2b("\0".join(chunk).encode(), digest_size=16).hexdigest()
        yield Chunk(number, offset, len(chunk), digest)
        offset += length
