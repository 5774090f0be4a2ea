"""Answers of a chunk in append-only part files, repaired after a kill, and the rows that are still open."""

import os
from contextlib import suppress
from pathlib import Path

import polars as pl

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.inputs.plan import read_chunk
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.inputs.rows import Row, caption_text
from vllm_annotate.inputs.source import Source
from vllm_annotate.results.lines import failure_line, path_of
from vllm_annotate.storage.atomic import sync_folder
from vllm_annotate.storage.json_text import json_object, raw_members, text_member
from vllm_annotate.storage.workspace import Workspace


class PartFile:
    """An append-only JSONL file with an `image_path` per line. Opening it removes a line that a kill cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths = set(whole_lines(path))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._is_torn = False  # ends in an incomplete line

    def append(self, image_path: str, line: bytes) -> None:
        """Appends the line in one write, after which it survives a SIGKILL. Raises OSError.

        A write that fails midway is undone: it would corrupt the next line.
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
        """Syncs the file to disk and closes it."""
        try:
            os.fsync(self._descriptor)
            sync_folder(self.path.parent)
        finally:
            os.close(self._descriptor)


def whole_lines(path: Path) -> dict[str, bytes]:
    """Repairs the end of a part and returns its lines by image path, the last of each; empty if there is no file.

    A last line without a newline is completed if it is a JSON object, else removed. (No proper prefix of an object is
    an object.)
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


class Part:
    """The results of a chunk so far: answers in `<chunk>.jsonl`, failures in `<chunk>.failures.jsonl`."""

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
        """The number of failed images."""
        return len(self._failures.paths)

    def answer(self, row: Row, line: bytes) -> None:
        """Saves the line of an answered image."""
        self._answers.append(row.image_path, line)

    def fail(self, row: Row, failure: ImageFailure) -> None:
        """Saves the failure of an image."""
        self._failures.append(row.image_path, failure_line(row.text, row.image_path, failure))


def answers_path(workspace: Workspace, chunk: Chunk) -> Path:
    """Returns the file of a chunk's answers until they are merged."""
    return workspace.parts / f"{chunk.name}.jsonl"


def failures_path(workspace: Workspace, chunk: Chunk) -> Path:
    """Returns the file of a chunk's failures until they are merged."""
    return workspace.parts / f"{chunk.name}.failures.jsonl"


def answer_files(workspace: Workspace) -> list[Path]:
    """Returns the files of answers that are not merged yet."""
    return [path for path in workspace.parts.glob("*.jsonl") if not path.name.endswith(".failures.jsonl")]


def pending_rows(workspace: Workspace, chunk: Chunk, source: Source) -> list[Row]:
    """Returns the chunk's open rows, in input order: neither in the output nor in its part files.

    An image that failed without a request is open too: a missing file may have been restored.
    """
    failures = whole_lines(failures_path(workspace, chunk))
    settled = {image_path for image_path, line in failures.items() if _attempts(line)}
    settled.update(whole_lines(answers_path(workspace, chunk)))
    rows = read_chunk(workspace, chunk).filter(~pl.col("merged"))
    return [
        row_of(image_path, text, source, workspace)
        for image_path, text in rows.select("image_path", "row").iter_rows()
        if image_path not in settled
    ]


def _attempts(line: bytes) -> int:
    failure = (json_object(line) or {}).get("failure")
    attempts = failure.get("attempts") if isinstance(failure, dict) else 0
    return attempts if isinstance(attempts, int) else 0


def row_of(image_path: str, text: str, source: Source, workspace: Workspace) -> Row:
    """Returns a planned row, with its caption. Raises UsageError if it is another image's."""
    columns, own = json_object(text), text_member(text, source.image_column)
    if columns is None or (own is not None and own != image_path and not source.is_parquet):
        raise UsageError(
            f"the plan has the row of {own!r:.200} for {image_path!r:.200}: {source.path} was replaced while it was "
            f"read; delete the plan, {workspace.plan_file}, and run again"
        )
    if not source.caption_column:
        return Row(image_path, "", text, has_caption=False)
    caption = columns.get(source.caption_column)
    if isinstance(caption, str):
        return Row(image_path, caption, text)
    _, written = raw_members(text).get(source.caption_column, ("", ""))
    return Row(image_path, caption_text(caption, written), text)
