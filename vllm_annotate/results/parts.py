"""Answers and failures of a chunk in part files, and the rows that are still open."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from vllm_annotate.errors import ImageFailure, InputFault
from vllm_annotate.inputs.plan import read_chunk
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.inputs.rows import Row, caption_text
from vllm_annotate.inputs.source import Source
from vllm_annotate.results.lines import failure_line
from vllm_annotate.results.part_file import PartFile, WholeLines, whole_lines
from vllm_annotate.storage.json_text import json_object, raw_members, text_member
from vllm_annotate.storage.workspace import Workspace


class Part:
    """The results of a chunk so far: answers in `<chunk>.jsonl`, failures in `<chunk>.failures.jsonl`."""

    def __init__(self, workspace: Workspace, chunk: Chunk) -> None:
        self.path = answers_path(workspace, chunk)
        self._answers = PartFile(self.path)
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


@contextmanager
def part_lines(workspace: Workspace, chunk: Chunk) -> Iterator[tuple[WholeLines, WholeLines]]:
    """Opens the answers and the failures of a chunk to read."""
    with whole_lines(answers_path(workspace, chunk)) as answers, whole_lines(failures_path(workspace, chunk)) as failed:
        yield answers, failed


def answer_files(workspace: Workspace) -> list[Path]:
    """Returns the files of answers that are not merged yet."""
    folders = [workspace.parts, *workspace.states.glob("*/parts")]
    return [path for parts in folders for path in parts.glob("*.jsonl") if not path.name.endswith(".failures.jsonl")]


def pending_rows(workspace: Workspace, chunk: Chunk, source: Source) -> list[Row]:
    """Returns the chunk's open rows, in input order: neither in the output nor in its part files.

    An image that failed without a request is open too: a missing file may have been restored.
    """
    with part_lines(workspace, chunk) as (answers, failed):
        settled = {image_path for image_path, line in failed.items() if _attempts(line)} | set(answers)
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
    """Returns a planned row, with its caption. Raises InputFault if it is another image's."""
    columns, own = json_object(text), text_member(text, source.image_column)
    if columns is None or (own is not None and own != image_path and not source.is_parquet):
        raise InputFault(
            f"the plan has the row of {own!r:.200} for {image_path!r:.200}: {source.given} was replaced while it was "
            f"read; delete the plan, {workspace.plan_file}, and run again"
        )
    if not source.caption_column:
        return Row(image_path, "", text, source.dropped, has_caption=False)
    caption = columns.get(source.caption_column)
    if isinstance(caption, str):
        return Row(image_path, caption, text, source.dropped)
    _, written = raw_members(text).get(source.caption_column, ("", ""))
    return Row(image_path, caption_text(caption, written), text, source.dropped)
