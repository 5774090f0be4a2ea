"""Rows that people corrected, beside the output that the model wrote."""

import weakref
from pathlib import Path

from vllm_annotate.results.lines import path_of
from vllm_annotate.storage.workspace import Workspace

REVIEW_FIELDS = ("reviewed", "reviewed_by", "reviewed_at")
SUFFIX = ".reviewed.jsonl"


def reviewed_file(output: Path) -> Path:
    """Returns where the corrected rows of an output are."""
    return Workspace.of_file(output).reviewed


def is_reviewed_file(path: Path) -> bool:
    """Whether the rows of a file are corrected ones, by its name."""
    return path.name.endswith(SUFFIX)


class Reviewed:
    """The corrected rows of an output, as they were when this was made: an import replaces the file.

    Holds their places, not the rows: people review thousands at most.
    """

    def __init__(self, output: Path) -> None:
        self._places: dict[str, int] = {}
        if not (path := reviewed_file(output)).is_file():
            return
        self._lines = path.open("rb")
        weakref.finalize(self, self._lines.close)
        at = 0
        for line in self._lines:
            if (image := path_of(line)) is not None:
                self._places[image] = at
            at += len(line)

    def __contains__(self, image_path: str) -> bool:
        return image_path in self._places

    def in_place_of(self, line: bytes) -> bytes:
        """Returns the corrected row of the same image, or the line itself. Of several corrected ones, the last."""
        at = self._places.get(path_of(line) or "") if self._places else None
        if at is None:
            return line
        self._lines.seek(at)
        return self._lines.readline()
