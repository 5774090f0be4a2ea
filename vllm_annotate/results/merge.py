"""Parts → the output and the failures file. A kill at any point neither loses nor repeats an answer."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import polars as pl

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.grounding.quality import Quality
from vllm_annotate.inputs.plan import open_plan, output_versions, read_chunks
from vllm_annotate.inputs.plan_file import Chunk, Plan, read_plan_file
from vllm_annotate.inputs.source import FileState, done_paths, file_state
from vllm_annotate.results.lines import failure_line, path_of
from vllm_annotate.results.parts import answers_path, failures_path, whole_lines
from vllm_annotate.storage.atomic import replacing, sync_folder
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.workspace import Workspace

COPY_BUFFER_BYTES = 8 * 1024 * 1024
MERGE_TRIES = 3
Result = TypeVar("Result")


@dataclass
class Merged:
    """What a merge moved: rows into the output, and rows without an answer by failure kind."""

    answered: int = 0
    annotations_error: int = 0
    left_alone: int = 0  # failures of kinds that were not retried
    failures: Counter[str] = field(default_factory=Counter)
    quality: Quality = field(default_factory=Quality)

    def add_answer(self, line: bytes) -> None:
        """Counts a row that moved into the output."""
        self.answered += 1
        if not self.quality.is_full:
            self.quality.add(json_object(line) or {})
        # Check the bytes first: parsing every line would take most of a merge.
        if b'"annotations_error":true' in line and (json_object(line) or {}).get("annotations_error") is True:
            self.annotations_error += 1

    def add_failure(self, line: bytes) -> None:
        """Counts a row that moved into the failures file."""
        failure = (json_object(line) or {}).get("failure")
        self.failures[str(failure.get("kind")) if isinstance(failure, dict) else "unknown"] += 1


class OutputChangedError(UsageError):
    """Another program wrote to the output while its lines were copied."""


def retry_if_changed(attempt: Callable[[], Result]) -> Result:
    """Returns what `attempt` returns. Retries it if another program writes to the output meanwhile.

    Raises UsageError if that continues.
    """
    for _ in range(MERGE_TRIES - 1):
        with suppress(OutputChangedError):
            return attempt()
    return attempt()


def merge(workspace: Workspace, plan: Plan, stopped: Mapping[int, ImageFailure]) -> Merged:
    """Appends the parts' answers to the output, in input order, and rewrites the failures file.

    `stopped` has a failure for each chunk (by number) that did not finish, which its open rows get. Both files are
    replaced atomically, failures first: between the two, an image can be in neither (its answer is still in a part),
    but never in both. Parts are removed last; the next run repeats an interrupted merge. Rows that other programs add
    to the output meanwhile stay, and are not answered twice.
    """
    merged = retry_if_changed(lambda: _merge(workspace, plan, stopped))
    if not merged.failures and not merged.left_alone:
        workspace.failures.unlink()
    workspace.set_aside.unlink(missing_ok=True)
    _remove_parts(workspace)
    return merged


def _merge(workspace: Workspace, plan: Plan, stopped: Mapping[int, ImageFailure]) -> Merged:
    before = file_state(workspace.output)
    _mark_merged(workspace, plan)
    merged = Merged()
    set_aside = _set_aside(workspace)
    with (
        extending(workspace, before, has_more=_has_answers(workspace)) as output,
        replacing(workspace.failures) as failures,
    ):
        for chunk, rows in read_chunks(workspace, plan.chunks):
            open_rows = _merge_chunk(workspace, chunk, rows, stopped.get(chunk.number), output, failures, merged)
            if set_aside:
                for image_path in open_rows["image_path"]:
                    set_aside.pop(image_path, None)  # it was sent after all
        failures.writelines(set_aside.values())
        merged.left_alone = len(set_aside)
    return merged


def _mark_merged(workspace: Workspace, plan: Plan) -> None:
    """Updates the plan if another program wrote to the output since the plan was opened."""
    if plan.outputs != output_versions(workspace) and open_plan(workspace) is None:
        raise UsageError(f"{workspace.plan_file} is missing or damaged: run again; all answers are saved")


def _set_aside(workspace: Workspace) -> dict[str, bytes]:
    """Returns the failures that a retry does not send, by image path, without images answered since.

    Reads the current failures file: another run may have finished since the retry chose its rows.
    """
    lines = whole_lines(workspace.set_aside)
    written = read_plan_file(workspace)
    if written is not None and written.source.get("path") == str(workspace.retried) and workspace.failures.exists():
        with workspace.failures.open("rb") as failures:
            lines |= {image_path: line for line in failures if (image_path := path_of(line)) is not None}
    if lines:
        answered = done_paths(*workspace.outputs).filter(pl.col("image_path").is_in(list(lines))).collect()
        for image_path in answered["image_path"]:
            del lines[image_path]
    return lines


def settle(workspace: Workspace, plan: Plan | None) -> int:
    """Moves answers that an abandoned plan left in its parts into the output; returns how many.

    They are in the input order of that plan, or in the order of the parts if the plan is missing.
    """
    if not any(workspace.parts.iterdir()):
        return 0
    answered = retry_if_changed(lambda: _settle(workspace, plan))
    _remove_parts(workspace)
    return answered


def _settle(workspace: Workspace, plan: Plan | None) -> int:
    before = file_state(workspace.output)
    if plan is not None:
        _mark_merged(workspace, plan)
    merged = Merged()
    with (
        extending(workspace, before, has_more=_has_answers(workspace)) as output,
        Path(os.devnull).open("wb") as nowhere,
    ):
        if plan is None:
            return append_unplanned(workspace, sorted(workspace.parts.glob("*.jsonl")), output)
        for chunk, rows in read_chunks(workspace, plan.chunks):
            _merge_chunk(workspace, chunk, rows, None, output, nowhere, merged)
    return merged.answered


def _merge_chunk(
    workspace: Workspace,
    chunk: Chunk,
    rows: pl.DataFrame,
    stopped: ImageFailure | None,
    output: BinaryIO,
    failures: BinaryIO,
    merged: Merged,
) -> pl.DataFrame:
    """Writes the chunk's open rows to output or failures; returns them."""
    answers = whole_lines(answers_path(workspace, chunk))
    failed = whole_lines(failures_path(workspace, chunk))
    open_rows = rows.filter(~pl.col("merged")).select("image_path", "row")
    for image_path, row in open_rows.iter_rows():
        if image_path in answers:
            output.write(answers[image_path])
            merged.add_answer(answers[image_path])
            continue
        if image_path not in failed:
            why = stopped or ImageFailure("unasked", "its chunk did not start")
            failed[image_path] = failure_line(row, image_path, why)
        failures.write(failed[image_path])
        merged.add_failure(failed[image_path])
    return open_rows


def append_unplanned(workspace: Workspace, parts: Sequence[Path], output: BinaryIO) -> int:
    """Writes answers of parts without a plan, except for images already in the output; returns how many."""
    done = set(done_paths(*workspace.outputs).collect()["image_path"])
    answered = 0
    for path in parts:
        if path.name.endswith(".failures.jsonl"):
            continue
        for image_path, line in whole_lines(path).items():
            if image_path not in done:
                output.write(line)
                done.add(image_path)
                answered += 1
    return answered


def _has_answers(workspace: Workspace) -> bool:
    answers = (path for path in workspace.parts.glob("*.jsonl") if not path.name.endswith(".failures.jsonl"))
    return any(path.stat().st_size for path in answers)


@contextmanager
def extending(workspace: Workspace, before: FileState | None, *, has_more: bool) -> Iterator[BinaryIO]:
    """A file with the output's lines, to append to, which then replaces it. Without more lines it stays untouched.

    `before` is the output's state when its rows were last read. Raises OutputChangedError if another program wrote to
    it since.
    """
    output = workspace.output
    if output.exists() and not has_more:
        with Path(os.devnull).open("wb") as nowhere:
            yield nowhere
        return
    with ExitStack() as stack:
        existing = stack.enter_context(output.open("rb")) if output.exists() else None
        with replacing(output) as file:
            if existing is not None:
                _copy_whole_lines(existing, file, workspace.torn)
            yield file
            if file_state(output) != before:
                raise OutputChangedError(
                    f"another program is writing to {output}: wait for it or stop it, then run again; all answers are "
                    "saved"
                )
        if existing is not None and before is not None:
            _append_late_lines(existing, before.size, output)


def _append_late_lines(replaced: BinaryIO, copied: int, output: Path) -> None:
    """Appends what another program wrote to the file just as it was replaced."""
    replaced.seek(copied)
    lines = [(path_of(line), line) for line in replaced.read().split(b"\n") if line.strip()]
    if not lines:
        return
    done = set(
        done_paths(output).filter(pl.col("image_path").is_in([path for path, _ in lines])).collect()["image_path"]
    )
    with output.open("ab") as file:
        file.writelines(line + b"\n" for path, line in lines if path not in done)
        file.flush()
        os.fsync(file.fileno())


def _copy_whole_lines(existing: BinaryIO, output: BinaryIO, torn: Path) -> None:
    """Copies the output byte for byte, and completes a last line without a newline.

    An incomplete last line that another program left goes to the file `torn` instead.
    """
    shutil.copyfileobj(existing, output, COPY_BUFFER_BYTES)
    tail = _unfinished_line(existing)
    if not tail:
        return
    if not _is_torn(tail):
        output.write(b"\n")
        return
    with torn.open("ab") as file:
        file.write(tail + b"\n")
        file.flush()
        os.fsync(file.fileno())
    output.seek(-len(tail), os.SEEK_END)
    output.truncate()


def _is_torn(tail: bytes) -> bool:
    """Whether a line is only the beginning of a JSON object, and not text that someone may need."""
    text = tail.decode(errors="replace").strip()
    if json_object(text) is not None or not text.startswith("{"):
        return False
    try:
        json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return False
    except ValueError:
        return True
    return False  # a complete object and more text


def _unfinished_line(file: BinaryIO) -> bytes:
    """Returns the text after a file's last newline."""
    size = file.seek(0, os.SEEK_END)
    tail = b""
    while len(tail) < size and b"\n" not in tail:
        start = max(0, size - len(tail) - COPY_BUFFER_BYTES)
        file.seek(start)
        tail = file.read(size - len(tail) - start) + tail
    return tail[tail.rfind(b"\n") + 1 :]


def _remove_parts(workspace: Workspace) -> None:
    for path in workspace.parts.iterdir():
        path.unlink()
    sync_folder(workspace.parts)
