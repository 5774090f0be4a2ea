"""Input → pending rows → chunks, with Polars. Memory does not grow with the number of rows already done."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.done_index import index_output, written_lines
from vllm_annotate.inputs.plan_file import (
    Chunk,
    Plan,
    PlanFile,
    read_plan_file,
    write_plan_file,
)
from vllm_annotate.inputs.plan_rows import ROW_GROUP, chunks_of, plan_rows, sink_rows
from vllm_annotate.inputs.source import Source, distinct_paths
from vllm_annotate.storage.appends import is_same, only_appended
from vllm_annotate.storage.atomic import replacing_path, sync_folder
from vllm_annotate.storage.file_states import FileState, file_state, file_version
from vllm_annotate.storage.workspace import Workspace

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
            counts, chunks = plan_rows(source, workspace, chunk_size)
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
        sink_rows(marked, path)
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
    return list(chunks_of(paths["image_path"], [chunk.length for chunk in written.chunks])) == written.chunks


def plan_is_for(workspace: Workspace, source: Source) -> bool:
    """Whether the plan in progress was made from this input and output, unchanged since but for its own answers."""
    written = read_plan_file(workspace)
    if written is None or written.source != source.identity():
        return False
    outputs = output_versions(workspace)
    if not written.outputs or written.outputs[1:] != outputs[1:]:
        return False
    before = written.outputs[0]
    return is_same(before, outputs[0]) or only_appended(workspace.appends, before, workspace.output)


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
