"""Answers as they come: append-only parts a chunk, healed after any kill, and the rows that they leave open."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from flows.errors import ImageFailure
from flows.images import PreparedImage
from flows.json_text import json_object
from flows.plan import Chunk, read_chunk
from flows.workspace import Workspace

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
        self.paths = set(whole_lines(path))
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
    lines = content.splitlines(keepends=True)
    return {image_path: line for line in lines if (image_path := path_of(line)) is not None}


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
    failures = map(orjson.loads, whole_lines(failures_path(workspace, chunk)).values())
    settled = {row["image_path"] for row in failures if row["failure"]["attempts"] > 0}
    settled.update(whole_lines(answers_path(workspace, chunk)))
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
