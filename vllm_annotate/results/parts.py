"""Answers as they come: append-only parts a chunk, healed after any kill, and the rows that they leave open."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.inputs.plan import Chunk, read_chunk
from vllm_annotate.inputs.source import Source
from vllm_annotate.storage.atomic import sync_folder
from vllm_annotate.storage.json_text import dumped, json_object, object_line, raw_members, text_member
from vllm_annotate.storage.workspace import Workspace

OUR_FIELDS = (
    "vlm_output", "annotations", "objects", "annotations_error", "flags", "parse_stage", "attempts",
    "width", "height", "sent_size",
)  # fmt: skip
OUR_FAILURE = {"kind", "message", "attempts"}
_FAILURE = '"failure"'


@dataclass(frozen=True)
class Row:
    """One image to annotate: its path, its caption and the text of the input row they came from."""

    image_path: str
    caption: str
    text: str  # a JSON object
    has_caption: bool = True  # False where no column is one; a column of that name is then as any other


def answer_line(row: Row, image: PreparedImage, vlm_output: str, parsed: Mapping[str, Any]) -> bytes:
    """The output line of an answered image: image_path, caption, the input's other columns as they stand, then ours.

    `parsed` holds annotations and objects, and whatever else there is to say of the answer. Input columns named like a
    field of ours are left out: an old flag would be read as ours.
    """
    identity = {"image_path": row.image_path}
    if row.has_caption or "caption" not in raw_members(row.text):
        identity["caption"] = row.caption
    sizes = {"width": image.width, "height": image.height, "sent_size": [image.sent_width, image.sent_height]}
    ours = {"vlm_output": vlm_output} | dict(parsed) | sizes
    return object_line(dumped(identity), *other_members(row.text, *identity, *OUR_FIELDS), dumped(ours))


def other_members(text: str, *names: str) -> Iterator[str]:
    """The members of a row that have other names, as they stand in it.

    Of a row from a failures file the failure is left out; a column that was called so comes back.
    """
    for name, (written, value) in raw_members(text).items():
        failure = raw_members(value) if name == "failure" and value[0] == "{" else {}
        if failure.keys() >= OUR_FAILURE:
            written, value = failure.get("column", ("", ""))
        if name not in names and written:
            yield f"{written if name != 'failure' else _FAILURE}:{value}"


def failure_line(text: str, image_path: str, failure: ImageFailure) -> bytes:
    """The failures line of an image: the input row as it stands, with its image path, and why it has no answer.

    A column of the input that is called failure is kept within ours.
    """
    details = {"kind": failure.kind, "message": failure.message, "attempts": failure.attempts}
    own = [member.partition(":")[2] for member in other_members(text) if member.startswith(f"{_FAILURE}:")]
    why = b",".join([dumped(details), *(f'"column":{value}'.encode() for value in own)])
    others = other_members(text, "image_path", "failure")
    return object_line(dumped({"image_path": image_path}), *others, b'"failure":{' + why + b"}")


class PartFile:
    """An append-only file of JSON lines, one `image_path` each; what a kill tore off is cut away on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths = set(whole_lines(path))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._is_torn = False  # ends in the half of a line

    def append(self, image_path: str, line: bytes) -> None:
        """Hands the line to the kernel in one write: from here on it survives a SIGKILL. Raises OSError.

        A write that fails half-way is taken back: the next line would be torn with it.
        """
        size = os.fstat(self._descriptor).st_size
        view = memoryview(b"\n" + line if self._is_torn else line)
        try:
            while view:  # a full disk or a signal can cut a write short
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            self._is_torn = True
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
                self._is_torn = False
            raise
        self._is_torn = False
        self.paths.add(image_path)

    def close(self) -> None:
        """Syncs, so that it survives a power loss too."""
        try:
            os.fsync(self._descriptor)
            sync_folder(self.path.parent)
        finally:
            os.close(self._descriptor)


def whole_lines(path: Path) -> dict[str, bytes]:
    """The lines of a part by image path, the last of each, after its end was mended; no file, no lines.

    A last line without its newline is completed when it is a whole JSON object, else cut away. (No proper prefix of an
    object is one, so nothing torn is taken for whole.)
    """
    try:
        with path.open("rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if path_of(content[end:]) is not None:
                content += b"\n"
                file.write(b"\n")
            else:
                content = content[:end]
                file.truncate(end)
    except FileNotFoundError:
        return {}
    lines = (line + b"\n" for line in content.split(b"\n"))
    return {image_path: line for line in lines if (image_path := path_of(line)) is not None}


def path_of(line: bytes) -> str | None:
    """The image path of a JSON line, as it is found in inputs and outputs; None for a torn line, or one without."""
    return text_member(line.decode(errors="replace"), "image_path")


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
        self._failures.append(row.image_path, failure_line(row.text, row.image_path, failure))


def answers_path(workspace: Workspace, chunk: Chunk) -> Path:
    """Where a chunk's answers are kept until they are merged."""
    return workspace.parts / f"{chunk.name}.jsonl"


def failures_path(workspace: Workspace, chunk: Chunk) -> Path:
    """Where a chunk's failures are kept until they are merged."""
    return workspace.parts / f"{chunk.name}.failures.jsonl"


def pending_rows(workspace: Workspace, chunk: Chunk, source: Source) -> list[Row]:
    """The chunk's rows that neither the output nor its part files settle, in input order.

    A failure settles its image until the merge if it cost a request; a missing file may have been put there since.
    """
    failures = whole_lines(failures_path(workspace, chunk))
    settled = {image_path for image_path, line in failures.items() if _attempts(line)}
    settled.update(whole_lines(answers_path(workspace, chunk)))
    rows = read_chunk(workspace, chunk).filter(~pl.col("merged"))
    return [
        _row(image_path, text, source, workspace)
        for image_path, text in rows.select("image_path", "row").iter_rows()
        if image_path not in settled
    ]


def _attempts(line: bytes) -> int:
    failure = (json_object(line) or {}).get("failure")
    attempts = failure.get("attempts") if isinstance(failure, dict) else 0
    return attempts if isinstance(attempts, int) else 0


def _row(image_path: str, text: str, source: Source, workspace: Workspace) -> Row:
    columns, own = json_object(text), text_member(text, source.image_column)
    if columns is None or (own is not None and own != image_path and not source.is_parquet):
        raise UsageError(
            f"the plan has a row of {own!r:.200} as that of {image_path!r:.200}: {source.path} was replaced while it "
            f"was read; delete the plan, {workspace.plan_file}, and run again"
        )
    if not source.caption_column:
        return Row(image_path, "", text, has_caption=False)
    caption = columns.get(source.caption_column)
    if isinstance(caption, str):
        return Row(image_path, caption, text)
    _, written = raw_members(text).get(source.caption_column, ("", ""))
    return Row(image_path, caption_text(caption, written), text)


def caption_text(caption: Any, written: str) -> str:
    """A caption that is no text, as it is asked: several are lines of one, others are their JSON as it is `written`.

    None and NaN, which is how tables write that there is none, are no caption.
    """
    if caption is None or (isinstance(caption, float) and math.isnan(caption)):
        return ""
    if isinstance(caption, list) and all(isinstance(line, str) for line in caption):
        return "\n".join(caption)
    return written
