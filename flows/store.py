"""Answers on disk: append-only parts a chunk, healed after any kill, merged into the output and the failures file."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import polars as pl

from flows.errors import ImageFailure
from flows.images import PreparedImage
from flows.json_text import json_object
from flows.plan import Chunk, Plan, done_paths, read_chunk
from flows.quality import Quality
from flows.workspace import Workspace, replacing, sync_folder

COPY_BUFFER_BYTES = 8 * 1024 * 1024
OUR_FIELDS = (
    "vlm_output", "annotations", "objects", "annotations_error", "flags", "parse_stage", "attempts",
    "width", "height", "sent_size",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One image to annotate: its path, its caption and the input row they came from."""

    image_path: str
    caption: str
    columns: dict[str, Any]


def answer_line(row: Row, image: PreparedImage, vlm_output: str, parsed: Mapping[str, Any]) -> bytes:
    """The output line of an answered image: image_path, caption, the input's other columns, then ours.

    `parsed` holds annotations and objects, and whatever else there is to say of the answer. Input
    columns named like a field of ours are left out, lest an old flag be read as ours.
    """
    identity = {"image_path": row.image_path, "caption": row.caption}
    others = {name: value for name, value in row.columns.items() if name not in identity and name not in OUR_FIELDS}
    sizes = {"width": image.width, "height": image.height, "sent_size": [image.sent_width, image.sent_height]}
    return orjson.dumps(identity | others | {"vlm_output": vlm_output} | dict(parsed) | sizes) + b"\n"


def failure_line(row: Mapping[str, Any], failure: ImageFailure) -> bytes:
    """The failures line of an image: the input row and why it has no answer."""
    details = {"kind": failure.kind, "message": failure.message, "attempts": failure.attempts}
    return orjson.dumps({**row, "failure": details}) + b"\n"


class PartFile:
    """An append-only file of JSON lines, one `image_path` each; what a kill tore off is cut away on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths = set(heal(path))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def append(self, image_path: str, line: bytes) -> None:
        """Hands the line to the kernel in one write: from here on it survives a SIGKILL."""
        view = memoryview(line)
        while view:  # a full disk or a signal can cut a write short
            view = view[os.write(self._descriptor, view) :]
        self.paths.add(image_path)

    def close(self) -> None:
        """Syncs, so that it survives a power loss too."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def heal(path: Path) -> list[str]:
    """Mends the end of a part and returns the image path of each of its whole lines; no file, no paths.

    A last line without its newline is completed when it is a whole JSON object, else cut away. (No proper prefix of an
    object is one, so nothing torn is taken for whole.)
    """
    try:
        with path.open("rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if path_of(content[end:]) is not None:
                file.write(b"\n")
            else:
                file.truncate(end)
    except FileNotFoundError:
        return []
    return [image_path for line in content.splitlines() if (image_path := path_of(line)) is not None]


def path_of(line: bytes) -> str | None:
    """The image path of a JSON line; None for a line that is torn, or without one."""
    row = json_object(line)
    image_path = row.get("image_path") if row else None
    return image_path if isinstance(image_path, str) else None


class Part:
    """What one chunk has so far: answers in `<chunk>.jsonl`, failures in `<chunk>.failures.jsonl`."""

    def __init__(self, workspace: Workspace, chunk: Chunk) -> None:
        self.chunk = chunk
        self._answers = PartFile(answers_path(workspace, chunk))
        self._failures = PartFile(failures_path(workspace, chunk))

    def close(self) -> None:
        """Syncs and closes both files."""
        try:
            self._answers.close()
        finally:
            self._failures.close()

    @property
    def failed(self) -> int:
        """Images with a failure."""
        return len(self._failures.paths)

    def answer(self, row: Row, line: bytes) -> None:
        """Keeps an answered image."""
        self._answers.append(row.image_path, line)

    def fail(self, row: Row, failure: ImageFailure) -> None:
        """Keeps a failed image."""
        identity = {"image_path": row.image_path}
        self._failures.append(row.image_path, failure_line(row.columns | identity, failure))


def answers_path(workspace: Workspace, chunk: Chunk) -> Path:
    """Where a chunk's answers are kept until they are merged."""
    return workspace.parts / f"{chunk.name}.jsonl"


def failures_path(workspace: Workspace, chunk: Chunk) -> Path:
    """Where a chunk's failures are kept until they are merged."""
    return workspace.parts / f"{chunk.name}.failures.jsonl"


def pending_rows(workspace: Workspace, chunk: Chunk, caption_column: str) -> list[Row]:
    """The chunk's rows that neither the output nor its part files settle, in input order.

    A failure settles its image until the merge if it cost a request; a missing file may have been put there since.
    """
    failures = map(orjson.loads, _lines_by_path(failures_path(workspace, chunk)).values())
    settled = {row["image_path"] for row in failures if row["failure"]["attempts"] > 0}
    settled.update(heal(answers_path(workspace, chunk)))
    rows = read_chunk(workspace, chunk).filter(~pl.col("merged"))
    return [
        _row(image_path, line, caption_column)
        for image_path, line in rows.select("image_path", "row").iter_rows()
        if image_path not in settled
    ]


def _row(image_path: str, line: str, caption_column: str) -> Row:
    columns = json_object(line) or {}
    if isinstance(columns.get("failure"), dict):  # the input is a failures file: its reasons are of an earlier run
        del columns["failure"]
    return Row(image_path, caption_text(columns.get(caption_column)), columns)


def caption_text(caption: Any) -> str:
    """A caption as it is asked and written: several captions are lines of one, anything else is JSON text."""
    if caption is None:
        return ""
    if isinstance(caption, list) and all(isinstance(line, str) for line in caption):
        return "\n".join(caption)
    return caption if isinstance(caption, str) else orjson.dumps(caption).decode()


@dataclass
class Merged:
    """What a merge moved: rows that went into the output, and rows without an answer by failure kind."""

    answered: int = 0
    annotations_error: int = 0
    left_alone: int = 0  # failures of other kinds than were asked again
    failures: Counter[str] = field(default_factory=Counter)
    quality: Quality = field(default_factory=Quality)

    def add_answer(self, line: bytes) -> None:
        """Counts a row that went into the output."""
        self.answered += 1
        if not self.quality.is_full:
            self.quality.add(orjson.loads(line))
        # The bytes first: reading every line again would be most of a merge.
        if b'"annotations_error":true' in line and orjson.loads(line).get("annotations_error") is True:
            self.annotations_error += 1

    def add_failure(self, line: bytes) -> None:
        """Counts a row that went into the failures file."""
        failure = (json_object(line) or {}).get("failure")
        self.failures[str(failure.get("kind")) if isinstance(failure, dict) else "unknown"] += 1


def merge(workspace: Workspace, plan: Plan, stopped: Mapping[int, ImageFailure]) -> Merged:
    """Moves the parts' answers behind the output's rows, in input order, and rewrites the failures file.

    `stopped` has a failure for each chunk (by number) that did not come to its end: its open rows get that one.
    Both files are replaced atomically, failures first: between the two an image can be in neither file (its answer is
    still in its part), but never in both. Parts go last; a merge cut short is done again by the next run.
    """
    merged = Merged()
    set_aside = _set_aside(workspace)
    with (
        extending(workspace.output, has_more=_has_answers(workspace)) as output,
        replacing(workspace.failures) as failures,
    ):
        for chunk in plan.chunks:
            for image_path in _merge_chunk(workspace, chunk, stopped.get(chunk.number), output, failures, merged):
                set_aside.pop(image_path, None)  # it was asked after all
        failures.writelines(set_aside.values())
        merged.left_alone = len(set_aside)
    if not merged.failures and not set_aside:
        workspace.failures.unlink()
    workspace.set_aside.unlink(missing_ok=True)
    _remove_parts(workspace)
    return merged


def _set_aside(workspace: Workspace) -> dict[str, bytes]:
    """Failures that a retry left alone, by image path; without those that have been answered since."""
    lines = _lines_by_path(workspace.set_aside)
    if lines:
        answered = done_paths(*workspace.outputs).filter(pl.col("image_path").is_in(list(lines))).collect()
        for image_path in answered["image_path"]:
            del lines[image_path]
    return lines


def settle(workspace: Workspace, plan: Plan | None) -> int:
    """Moves what an abandoned plan left in its parts into the output; returns how many rows.

    In the input order of that plan, or, where the plan itself is gone, in the order of the parts.
    """
    if not any(workspace.parts.iterdir()):
        return 0
    merged = Merged()
    with (
        extending(workspace.output, has_more=_has_answers(workspace)) as output,
        Path(os.devnull).open("wb") as nowhere,
    ):
        if plan is not None:
            for chunk in plan.chunks:
                _merge_chunk(workspace, chunk, None, output, nowhere, merged)
        else:
            merged.answered = append_unplanned(workspace, sorted(workspace.parts.glob("*.jsonl")), output)
    _remove_parts(workspace)
    return merged.answered


def _merge_chunk(
    workspace: Workspace,
    chunk: Chunk,
    stopped: ImageFailure | None,
    output: BinaryIO,
    failures: BinaryIO,
    merged: Merged,
) -> list[str]:
    """Writes the chunk's rows where they belong; returns their image paths."""
    answers = _lines_by_path(answers_path(workspace, chunk))
    failed = _lines_by_path(failures_path(workspace, chunk))
    open_rows = read_chunk(workspace, chunk).filter(~pl.col("merged")).select("image_path", "row")
    for image_path, row in open_rows.iter_rows():
        if image_path in answers:
            output.write(answers[image_path])
            merged.add_answer(answers[image_path])
            continue
        if image_path not in failed:
            why = stopped or ImageFailure("unasked", "its chunk did not come to its turn")
            failed[image_path] = failure_line({**(json_object(row) or {}), "image_path": image_path}, why)
        failures.write(failed[image_path])
        merged.add_failure(failed[image_path])
    return open_rows["image_path"].to_list()


def _lines_by_path(path: Path) -> dict[str, bytes]:
    heal(path)
    if not path.exists():
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    return {image_path: line for line in lines if (image_path := path_of(line)) is not None}


def append_unplanned(workspace: Workspace, parts: Sequence[Path], output: BinaryIO) -> int:
    """Writes the answers of parts whose plan is not at hand, but for images that have one; returns how many."""
    done = set(done_paths(*workspace.outputs).collect()["image_path"])
    answered = 0
    for path in parts:
        if path.name.endswith(".failures.jsonl"):
            continue
        for image_path, line in _lines_by_path(path).items():
            if image_path not in done:
                output.write(line)
                done.add(image_path)
                answered += 1
    return answered


def _has_answers(workspace: Workspace) -> bool:
    answers = (path for path in workspace.parts.glob("*.jsonl") if not path.name.endswith(".failures.jsonl"))
    return any(path.stat().st_size for path in answers)


@contextmanager
def extending(output: Path, *, has_more: bool) -> Iterator[BinaryIO]:
    """A file that takes the output's place and holds its lines; where there are no more, the output stays untouched."""
    if output.exists() and not has_more:
        with Path(os.devnull).open("wb") as nowhere:
            yield nowhere
        return
    with replacing(output) as file:
        _copy_whole_lines(output, file)
        yield file


def _copy_whole_lines(existing: Path, output: BinaryIO) -> None:
    """Copies the output byte for byte, but for a torn last line: that is cut away, or completed if it is whole."""
    if not existing.exists():
        return
    with existing.open("rb") as file:
        shutil.copyfileobj(file, output, COPY_BUFFER_BYTES)
        tail = _unfinished_line(file)
    if not tail:
        return
    if json_object(tail) is not None:
        output.write(b"\n")
    else:
        output.seek(-len(tail), os.SEEK_END)
        output.truncate()


def _unfinished_line(file: BinaryIO) -> bytes:
    """What follows the last newline of a file."""
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
