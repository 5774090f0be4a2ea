"""Parts → the output and the failures file. A kill at any point neither loses nor repeats an answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import polars as pl

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.inputs.done_index import vouch
from vllm_annotate.inputs.plan import POLARS_ERRORS, open_plan, output_versions, read_chunk, read_chunks
from vllm_annotate.inputs.plan_file import Chunk, Plan, read_plan_file
from vllm_annotate.inputs.source import done_paths, output_lines
from vllm_annotate.results.append import NewLines, OutputChangedError, appending, retry_if_changed
from vllm_annotate.results.asked_failures import line_numbers, lines_with, put_back_asked, take_out_asked
from vllm_annotate.results.lines import failure_line
from vllm_annotate.results.merged import Merged
from vllm_annotate.results.part_file import whole_lines
from vllm_annotate.results.parts import answer_files, answers_path, failures_path, part_lines
from vllm_annotate.storage.appends import appended_ranges
from vllm_annotate.storage.atomic import replacing, sync_folder
from vllm_annotate.storage.file_states import FileState, file_state
from vllm_annotate.storage.workspace import Workspace

UNASKED = ImageFailure("unasked", "its chunk did not start")


class Merge:
    """Appends the answers of a plan to the output, chunk by chunk in input order, and rewrites the failures file.

    The failures of chunks that are in the output stay in their parts until the end. An image can be in neither file for
    a while (its line is still in a part), but never in both. The next run goes on with an interrupted merge. Rows that
    other programs add to the output meanwhile stay, and are not answered twice: once another program has written to
    it, the output does not grow any more until the end.
    """

    def __init__(
        self, workspace: Workspace, plan: Plan, *, grows: bool = True, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        """A merge into an output that `grows` while the run works, or only at the end."""
        self.plan = plan
        self.stopped: dict[int, ImageFailure] = {}  # by the number of the chunk: the failure of its unfinished images
        self._workspace = workspace
        self._grows = grows
        self._warn = warn
        self._ended: set[int] = set()  # numbers of chunks
        self._appended = 0  # the first so many chunks are in the output
        self._merged_before = _merged_rows(workspace) if plan.resumed else 0
        self._took_out = self._is_appending = False
        self._is_alone = True  # no other program has written to the output
        self._lock = Lock()  # of these fields; nothing is awaited under it

    def end_chunk(self, chunk: Chunk, stopped: ImageFailure | None = None) -> None:
        """Takes note that nothing more comes of a chunk, and appends its answers once those before it are appended.

        Returns at once if another thread is appending, which then appends these too. What cannot be appended now is
        appended at the end: of that a warning tells, and no error.
        """
        with self._lock:
            self._ended.add(chunk.number)
            if stopped is not None:
                self.stopped[chunk.number] = stopped
        while (ready := self._next()) is not None:
            try:
                self._append(ready)
            except (OSError, UsageError, *POLARS_ERRORS) as error:
                self._grows = False
                self._warn(f"{self._workspace.output} will get its next answers at the end of the run: {error}")
            finally:
                self._is_appending = False

    def _next(self) -> Chunk | None:
        """The next chunk to append, if it has ended and no other thread is appending."""
        with self._lock:
            if not self._grows or self._is_appending or self._appended + 1 not in self._ended:
                return None
            self._is_appending = True
            return self.plan.chunks[self._appended]

    def _append(self, chunk: Chunk) -> None:
        """Appends the answers of a chunk, and completes its failures. An error leaves it to the end, but for the last.

        The part of its answers goes when they count as appended: an error there must not have them appended again.
        """
        workspace, before = self._workspace, file_state(self._workspace.output)
        if self.plan.outputs != output_versions(workspace):
            raise OutputChangedError(workspace)
        with part_lines(workspace, chunk) as (answers, failed):
            rows = list(_open_rows(read_chunk(workspace, chunk), answers, failed, self._why(chunk)))
            answered = [image_path for image_path, failure in rows if failure is None]
            if len(answered) < len(rows):
                with replacing(failures_path(workspace, chunk)) as file:
                    file.writelines(failure for _, failure in rows if failure is not None)
            else:
                failures_path(workspace, chunk).unlink(missing_ok=True)
            if answered:
                self._take_out()
                with appending(workspace, before, in_turn=True) as output:
                    output.writelines(map(answers.__getitem__, answered))
                self.plan = replace(self.plan, outputs=[output.left, *self.plan.outputs[1:]])
        self._appended += 1
        answers_path(workspace, chunk).unlink(missing_ok=True)

    def finish(self) -> Merged:
        """Appends what is left, replaces the failures file and removes the parts; returns what the plan's chunks gave.

        No chunk may be at work any more. Raises OSError, and UsageError if another program keeps writing to the output.
        """
        workspace = self._workspace
        merged = retry_if_changed(self._finish)
        vouch(workspace)
        if not merged.failures and not merged.left_alone:
            workspace.failures.unlink()
        workspace.asked_failures.unlink(missing_ok=True)
        workspace.set_aside.unlink(missing_ok=True)
        _remove_parts(workspace)
        return merged

    def _finish(self) -> Merged:
        workspace, merged = self._workspace, Merged()
        plan, before = _agreed(workspace, self.plan)
        if plan is not self.plan:  # its rows say which of them are in the output
            self.plan, self._appended, self._is_alone = plan, 0, False
        if self._is_alone:
            for line in _appended_lines(workspace):
                merged.add(line, is_answer=True)
        else:
            merged.answered = _merged_rows(workspace) - self._merged_before
        self._take_out()
        left_alone = _left_alone(workspace)
        with appending(workspace, before) as output, replacing(workspace.failures) as failures:
            for chunk, rows in read_chunks(workspace, plan.chunks):
                with part_lines(workspace, chunk) as (answers, failed):
                    appended = chunk.number <= self._appended
                    for image_path, failure in _open_rows(rows, answers, failed, self._why(chunk), appended=appended):
                        line = answers[image_path] if failure is None else failure
                        (output if failure is None else failures).write(line)
                        merged.add(line, is_answer=failure is None)
            for path, numbers in left_alone:
                failures.writelines(lines_with(path, numbers, chosen=True))
                merged.left_alone += len(numbers)
        return merged

    def _why(self, chunk: Chunk) -> ImageFailure:
        """The failure of rows of a chunk that were not asked."""
        return self.stopped.get(chunk.number, UNASKED)

    def _take_out(self) -> None:
        if not self._took_out:
            take_out_asked(self._workspace)
            self._took_out = True


def _agreed(workspace: Workspace, plan: Plan) -> tuple[Plan, FileState | None]:
    """Returns the plan and the state of the output with which its rows agree: another program may have written to it.

    Opens the plan again if it did, so no other thread may read its rows. Raises OutputChangedError if it still does.
    """
    before = file_state(workspace.output)
    if plan.outputs != output_versions(workspace):
        opened = open_plan(workspace)
        if opened is None:
            raise UsageError(f"{workspace.plan_file} is missing or damaged: run again; all answers are saved")
        plan = opened
    if plan.outputs[0] != (None if before is None else [before.size, before.modified]):
        raise OutputChangedError(workspace)
    return plan, before


def _appended_lines(workspace: Workspace) -> Iterator[bytes]:
    """Yields the answers that this plan, also in a run that was killed, has appended to the output."""
    if workspace.output.exists():
        with workspace.output.open("rb") as file:
            for start, end in appended_ranges(workspace.appends, workspace.output.stat().st_size):
                file.seek(start)
                while file.tell() < end and (line := file.readline()):
                    yield line


def _merged_rows(workspace: Workspace) -> int:
    """How many rows of the plan were in the output when it was opened last."""
    return int(pl.scan_parquet(workspace.plan_rows, glob=False).select(pl.col("merged").sum()).collect().item())


def _left_alone(workspace: Workspace) -> list[tuple[Path, pl.Series]]:
    """The failures that a retry or a selection does not ask again: files, and the numbers of their lines.

    Without images that were answered since, or are asked after all. Of the current failures file, as another run may
    have finished since a retry chose its rows.
    """
    written = read_plan_file(workspace)
    is_partial = written is not None and (
        written.source.get("path") == str(workspace.retried) or bool(written.source.get("selection"))
    )
    files = [
        path for path in (workspace.failures if is_partial else None, workspace.set_aside) if path and path.exists()
    ]
    open_ones = pl.scan_parquet(workspace.plan_rows, glob=False).filter(~pl.col("merged")).select("image_path")
    known, found = pl.concat([done_paths(*workspace.outputs), open_ones]), []
    for path in files:
        lines = output_lines(path).filter(pl.col("image_path").is_not_null()).unique("image_path", keep="last")
        found.append((path, line_numbers(lines.join(known, on="image_path", how="anti"))))
        known = pl.concat([known, lines.select("image_path")])
    return found


def settle(workspace: Workspace, plan: Plan | None) -> int:
    """Moves answers that an abandoned plan left in its parts into the output; returns how many.

    They are in the input order of that plan, or in the order of the parts if the plan is missing.
    """
    if not any(workspace.parts.iterdir()):
        return 0
    answered = retry_if_changed(partial(_settle, workspace, plan))
    vouch(workspace)
    put_back_asked(workspace)
    _remove_parts(workspace)
    return answered


def _settle(workspace: Workspace, plan: Plan | None) -> int:
    if plan is None:
        before, parts = file_state(workspace.output), answer_files(workspace)
        take_out_asked(workspace, *parts)
        with appending(workspace, before) as output:
            return append_unplanned(workspace, parts, output)
    plan, before = _agreed(workspace, plan)
    take_out_asked(workspace)
    answered = 0
    with appending(workspace, before) as output:
        for chunk, rows in read_chunks(workspace, plan.chunks):
            with whole_lines(answers_path(workspace, chunk)) as answers:
                for image_path in rows.filter(~pl.col("merged"))["image_path"] if answers else ():
                    if image_path in answers:
                        output.write(answers[image_path])
                        answered += 1
    return answered


def append_unplanned(workspace: Workspace, parts: Sequence[Path], output: NewLines) -> int:
    """Writes answers of parts without a plan, except for images already in the output; returns how many."""
    done = set(done_paths(*workspace.outputs).collect()["image_path"])
    answered = 0
    for path in parts:
        if path.name.endswith(".failures.jsonl"):
            continue
        with whole_lines(path) as lines:
            for image_path, line in lines.items():
                if image_path not in done:
                    output.write(line)
                    done.add(image_path)
                    answered += 1
    return answered


def _open_rows(
    rows: pl.DataFrame,
    answers: Mapping[str, bytes],
    failed: Mapping[str, bytes],
    why: ImageFailure,
    *,
    appended: bool = False,
) -> Iterator[tuple[str, bytes | None]]:
    """Yields the image path of each open row of a chunk, and its failure, None if it has an answer.

    `why` is the failure of rows with neither. If the chunk is `appended`, its answers are in the output, and all its
    failures in its part.
    """
    for image_path, row in rows.filter(~pl.col("merged")).select("image_path", "row").iter_rows():
        if image_path in failed and (appended or image_path not in answers):
            yield image_path, failed[image_path]
        elif not appended:
            yield image_path, None if image_path in answers else failure_line(row, image_path, why)


def _remove_parts(workspace: Workspace) -> None:
    for path in workspace.parts.iterdir():
        path.unlink()
    sync_folder(workspace.parts)
