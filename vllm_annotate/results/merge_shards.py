"""`python -m flows.merge_shards`: the answers of all shards → one output, in the order of the input.

What the flow annotate-sharded does at its end, for people who start the shards otherwise. Exit codes: 0 every image is
answered, 1 some have failed or their shards have not come to their end, 2 refused, nothing changed.
"""

import argparse
import mmap
import resource
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from vllm_annotate.cli.interrupts import INTERRUPTED
from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.inputs.plan import (
    Chunk,
    Counts,
    Plan,
    make_plan,
    open_plan,
    read_chunks,
    remove_plan,
)
from vllm_annotate.inputs.source import Source, done_paths, file_state
from vllm_annotate.pipeline.files import check_distinct, found_image_root, found_source
from vllm_annotate.report.page import write_page
from vllm_annotate.report.sharded import summarise_shards
from vllm_annotate.report.summary import sentence
from vllm_annotate.results.merge import Merged, extending, settle, undisturbed
from vllm_annotate.results.parts import failure_line, path_of
from vllm_annotate.results.provenance import makers_in
from vllm_annotate.results.shards import opened_with_shards
from vllm_annotate.storage.atomic import explained, read_json, replacing, write_json
from vllm_annotate.storage.locations import ImageRoot, location
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.workspace import Workspace

ROWS_AT_ONCE = 8192
INDEXED_AT_ONCE = 100_000  # lines whose places are held as Python objects
NOT_ENDED = ImageFailure("unasked", "its shard has not come to its end")


@dataclass
class MergedShards:
    """What a merge moved, and what the input held."""

    counts: Counts
    merged: Merged
    reports: dict[str, dict[str, Any]]  # shard's name → its report.json


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = argparse.ArgumentParser(
        prog="python -m flows.merge_shards",
        description="Put the answers of all shards of an output together, in the order of the input.",
    )
    options.add_argument("--input", required=True, type=location, help="the file that the shards are shares of")
    options.add_argument("--output", required=True, type=location, help="the result, as it was given to every shard")
    options.add_argument(
        "--image-root", required=True, type=location, help="folder of the images, for the report's gallery"
    )
    options.add_argument("--image-column", default="image_path", help="input column with the image path")
    given = options.parse_args(arguments)
    try:
        check_distinct(given.input, given.output)
        root = found_image_root(given.image_root)
        source, _ = found_source(given.input, given.image_column, caption_column="")
        report = merge_and_publish(source, given.output, root, [], partial(print, file=sys.stderr))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {explained(error, given.output)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: all answers are kept; merge again to go on", file=sys.stderr)
        return INTERRUPTED
    print(sentence(report))
    return 1 if report["images"]["failed"] else 0


def merge_shards(source: Source, whole: Workspace, shards: Sequence[Workspace]) -> MergedShards:
    """Moves the answers of the shards behind the rows of the output, and rewrites the failures file.

    In the input's order, and behind them what is not in the input any more; what a shard has twice or the output has
    already is not taken. Both files are replaced atomically before the shards give up theirs, so a merge cut short is
    done again by the next. Raises UsageError while a run writes the output or a shard, where they were written with
    different recipes, and for an input that cannot be read.
    """
    if not shards:
        raise UsageError(f"{shards_folder(whole.output)} holds no shard: run some with --shard, such as --shard 1/16")
    with ExitStack() as locks:
        for workspace in (whole, *shards):
            locks.enter_context(workspace.locked())
        _check_recipes(whole, shards)
        for workspace in (whole, *shards):  # runs that were killed have left answers in their parts
            settle(workspace, open_plan(workspace))
        plan, merged = undisturbed(lambda: _merge_lines(source, whole, shards))
        if not merged.failures:
            whole.failures.unlink()
        remove_plan(whole)
        for shard in shards:
            shard.output.unlink(missing_ok=True)
            shard.failures.unlink(missing_ok=True)
        reports = {shard.output.stem: report for shard in shards if (report := _report(shard))}
    return MergedShards(plan.counts, merged, reports)


def _merge_lines(source: Source, whole: Workspace, shards: Sequence[Workspace]) -> tuple[Plan, Merged]:
    """Replaces output and failures file of the whole; failures first, as every merge does."""
    before = file_state(whole.output)
    plan, merged = make_plan(source, whole, ROWS_AT_ONCE), Merged()
    with ExitStack() as files:
        answers = _Lines([shard.output for shard in shards], whole, files)
        # The output's own last: they are older, but tell why where a shard was merged before.
        failures = _Lines([*(shard.failures for shard in shards), whole.failures], whole, files)
        output = files.enter_context(extending(whole, before, has_more=not answers.empty))
        failed = files.enter_context(replacing(whole.failures))
        for chunk, frame in read_chunks(whole, plan.chunks):
            rows = frame.select("image_path", "row").iter_rows()
            for (image_path, row), answer, failure in zip(rows, answers.of(chunk), failures.of(chunk), strict=True):
                if answer is not None:
                    output.write(answer)
                    merged.add_answer(answer)
                else:
                    line = failure or failure_line(row, image_path, NOT_ENDED)
                    failed.write(line)
                    merged.add_failure(line)
        for answer in answers.unplanned():  # of images that the input no longer names, or that another input named
            output.write(answer)
            merged.add_answer(answer)
        output.writelines(answers.nameless())  # the shards' files go, and these are nobody's to drop
    return plan, merged


def _report(shard: Workspace) -> dict[str, Any] | None:
    try:
        return read_json(shard.report)
    except ValueError:  # its figures are lost, its answers are not
        return None


def merge_and_publish(
    source: Source,
    output: Path | str,
    image_root: ImageRoot,
    lost: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Merges the shards of an output at a path or a URL, writes report.json and report.html; returns the report.

    `lost` names the shards that did not come to their end. Raises what `merge_shards` does, and OSError.
    """
    _raise_limit_of_files()
    with opened_with_shards(output, say) as files:
        whole, *of_shards = (each.workspace for each in files)
        try:
            shards = merge_shards(source, whole, of_shards)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise UsageError(f"{source.path} or {output} cannot be read to its end: {error!s:.300}") from None
        for each in files:  # the output first: only then do its shards give up what they have
            each.publish()
        report = summarise_shards(shards.counts, shards.merged, shards.reports, lost, makers_in(whole.report))
        write_json(whole.report, report)
        try:
            write_page(whole, image_root, report, [])
        except Exception as error:  # every answer is in the output by now: no page is worth a failed run
            say(f"report.html could not be written: {error!r}")
        files[0].publish()
    return report


def _raise_limit_of_files() -> None:
    """A merge holds three files of every shard open; the usual limit of 1024 is one that a process may raise itself."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a system may say no to "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _check_recipes(whole: Workspace, shards: Sequence[Workspace]) -> None:
    """Raises UsageError unless output and shards have one recipe, which the output then keeps."""
    recipe = next(filter(None, (shard.read_recipe() for shard in shards)), None)
    if recipe is None:
        return
    settings, identity = recipe["settings"], recipe["fingerprint"]
    for shard in shards:
        shard.guard_recipe(settings, identity)
    whole.record_recipe(settings, identity)


class _Lines:
    """JSON lines of several files, in the order of a plan: on disk, but for where each begins and ends."""

    def __init__(self, paths: Sequence[Path], whole: Workspace, stack: ExitStack) -> None:
        full = [path for path in paths if path.exists() and path.stat().st_size]
        self.empty = not full
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
        """For every row of the chunk its line, or None."""
        return self._lines(self._places.slice(chunk.offset, chunk.length))

    def unplanned(self) -> Iterator[bytes]:
        """Lines of images that are neither in the plan nor in the output."""
        return filter(None, self._lines(self._unplanned))

    def nameless(self) -> Iterator[bytes]:
        """Lines without an image path: what somebody else has written, or torn."""
        return filter(None, self._lines(self._nameless))

    def _lines(self, places: pl.DataFrame) -> Iterator[bytes | None]:
        for file, start, end in places.iter_rows():
            line = None if file is None else self._contents[file][start:end]
            yield line if line is None or line.endswith(b"\n") else line + b"\n"


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _places(number: int, path: Path) -> pl.DataFrame:
    """Columns image_path (null where there is none), file, start and end (bytes) of each line that is not blank."""
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
