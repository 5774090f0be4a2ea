"""Answers of all shards → one output, in input order."""

import mmap
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import polars as pl

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.inputs.done_index import vouch
from vllm_annotate.inputs.plan import make_plan, open_plan, read_chunks, remove_plan
from vllm_annotate.inputs.plan_file import Chunk, Counts, Plan
from vllm_annotate.inputs.source import Source, done_paths
from vllm_annotate.recipe.guard import guard_recipe, read_recipe, record_recipe
from vllm_annotate.results.append import appending, repair_output, retry_if_changed
from vllm_annotate.results.asked_failures import put_back_asked, take_out_asked
from vllm_annotate.results.lines import failure_line, path_of
from vllm_annotate.results.merge import settle
from vllm_annotate.results.merged import Merged
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.file_states import file_state
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.workspace import Workspace

ROWS_AT_ONCE = 8192
INDEXED_AT_ONCE = 100_000  # lines whose positions are Python objects at a time
UNFINISHED = ImageFailure("unasked", "its shard did not finish")


def merge_shards(source: Source, whole: Workspace, shards: Sequence[Workspace]) -> tuple[Counts, Merged]:
    """Appends the answers of the shards to the output, and rewrites the failures file.

    Answers are in input order, followed by those of images that are no longer in the input. Images that are already in
    the output, and duplicates, are skipped. The shards' files are removed last: the next merge goes on with an
    interrupted one. Raises UsageError if a run is writing the output or a shard, if recipes
    differ, or if the input cannot be read.
    """
    with locked_together(whole, shards):
        for workspace in (whole, *shards):  # killed runs left answers in their parts
            repair_output(workspace)
            put_back_asked(workspace)
            settle(workspace, open_plan(workspace))
        plan, merged = retry_if_changed(lambda: _merge_lines(source, whole, shards))
        vouch(whole)
        if not merged.failures:
            whole.failures.unlink()
        whole.asked_failures.unlink(missing_ok=True)
        remove_plan(whole)
        for shard in shards:
            shard.output.unlink(missing_ok=True)
            shard.failures.unlink(missing_ok=True)
    return plan.counts, merged


@contextmanager
def locked_together(whole: Workspace, shards: Sequence[Workspace]) -> Iterator[None]:
    """Locks an output and its shards. Raises UsageError if there are none, if one is at work, or if recipes differ."""
    if not shards:
        raise UsageError(f"{shards_folder(whole.output)} has no shards: run them with --shard, such as --shard 1/16")
    with ExitStack() as locks:
        for workspace in (whole, *shards):
            locks.enter_context(workspace.locked())
        _check_recipes(whole, shards)
        yield


def _merge_lines(source: Source, whole: Workspace, shards: Sequence[Workspace]) -> tuple[Plan, Merged]:
    """Appends to the output of the whole and replaces its failures file, as `Merge`."""
    before = file_state(whole.output)
    plan, merged = make_plan(source, whole, ROWS_AT_ONCE), Merged()
    with ExitStack() as files:
        answers = _Lines([shard.output for shard in shards], whole, files)
        # The output's own failures come last: they are older, but give the reason if a shard was merged before.
        failures = _Lines([*(shard.failures for shard in shards), whole.failures, whole.asked_failures], whole, files)
        take_out_asked(whole)
        output = files.enter_context(appending(whole, before))
        failed = files.enter_context(replacing(whole.failures))
        for chunk, frame in read_chunks(whole, plan.chunks):
            rows = frame.select("image_path", "row").iter_rows()
            for (image_path, row), answer, failure in zip(rows, answers.of(chunk), failures.of(chunk), strict=True):
                if answer is not None:
                    output.write(answer)
                    merged.add_answer(answer)
                else:
                    line = failure or failure_line(row, image_path, UNFINISHED)
                    failed.write(line)
                    merged.add_failure(line)
        for answer in answers.unplanned():  # of images that are not in this input, or no longer
            output.write(answer)
            merged.add_answer(answer)
        output.writelines(answers.nameless())  # the shards' files are removed, and these lines may matter to someone
    return plan, merged


def _check_recipes(whole: Workspace, shards: Sequence[Workspace]) -> None:
    """Raises UsageError unless output and shards have one recipe; records it for the output."""
    recipe = next(filter(None, (read_recipe(shard) for shard in shards)), None)
    if recipe is None:
        return
    settings, identity = recipe["settings"], recipe["fingerprint"]
    for shard in shards:
        guard_recipe(shard, settings, identity)
    record_recipe(whole, settings, identity)


class _Lines:
    """JSON lines of several files in the order of a plan. Only their positions are in memory."""

    def __init__(self, paths: Sequence[Path], whole: Workspace, stack: ExitStack) -> None:
        full = [path for path in paths if path.exists() and path.stat().st_size]
        self._contents = [stack.enter_context(_mapped(path)) for path in full]
        places = pl.concat([_places(number, path) for number, path in enumerate(full)] or [_frame(0, [], [], [])])
        planned = pl.scan_parquet(whole.plan_rows, glob=False).select("image_path")
        named = pl.col("image_path").is_not_null()
        self._nameless = places.filter(~named).drop("image_path")
        first = places.lazy().filter(named).unique("image_path", keep="first", maintain_order=True)
        ordered = planned.join(first, on="image_path", how="left", maintain_order="left").drop("image_path")
        others = first.join(planned, on="image_path", how="anti", maintain_order="left")
        others = others.join(done_paths(whole.output), on="image_path", how="anti", maintain_order="left")
        self._places, self._unplanned = pl.collect_all([ordered, others.drop("image_path")], engine="streaming")

    def of(self, chunk: Chunk) -> Iterator[bytes | None]:
        """Yields the line of each row of the chunk, or None."""
        return self._lines(self._places.slice(chunk.offset, chunk.length))

    def unplanned(self) -> Iterator[bytes]:
        """Yields lines of images that are neither in the plan nor in the output."""
        return filter(None, self._lines(self._unplanned))

    def nameless(self) -> Iterator[bytes]:
        """Yields lines without an image path, which other programs wrote or cut off."""
        return filter(None, self._lines(self._nameless))

    def _lines(self, places: pl.DataFrame) -> Iterator[bytes | None]:
        for file, start, end in places.iter_rows():
            line = None if file is None else self._contents[file][start:end]
            yield line if line is None or line.endswith(b"\n") else line + b"\n"


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _places(number: int, path: Path) -> pl.DataFrame:
    """Returns columns image_path (null if missing), file, start and end (bytes) of lines that are not blank."""
    frames, paths, starts, ends = [], list[str | None](), array("Q"), array("Q")
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                paths.append(path_of(line))
                starts.append(offset)
                ends.append(offset + len(line))
            offset += len(line)
            if len(paths) == INDEXED_AT_ONCE:
                frames.append(_frame(number, paths, starts, ends))
                paths, starts, ends = [], array("Q"), array("Q")
    return pl.concat([*frames, _frame(number, paths, starts, ends)])


def _frame(number: int, paths: Sequence[str | None], starts: Sequence[int], ends: Sequence[int]) -> pl.DataFrame:
    columns = {"image_path": pl.Series(paths, dtype=pl.String)}
    columns["file"] = pl.repeat(number, len(paths), dtype=pl.UInt16, eager=True)
    columns |= {name: pl.Series(values, dtype=pl.UInt64) for name, values in (("start", starts), ("end", ends))}
    return pl.DataFrame(columns)
