"""The sample of an audit: answered rows of an output, chosen by a hash of their image path."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.texts import check_file, lines_of
from vllm_annotate.inputs.ranks import rank_of
from vllm_annotate.storage.json_text import json_object


@dataclass(frozen=True)
class Sampled:
    """An answered row. The fields are what asking again needs."""

    image_path: str
    caption: str  # empty if there is none
    line: bytes

    @property
    def question(self) -> dict[str, Any]:
        """The row of an input that asks for this image again."""
        return {"image_path": self.image_path, "caption": self.caption}


@dataclass(frozen=True)
class Sample:
    """The sampled rows, in the order of the hash, and how many rows they are chosen from."""

    rows: Sequence[Sampled]
    answered: int  # rows to choose from
    unparsed: int  # rows without an annotation: known to be wrong, and so not sampled


def draw_sample(output: Path, count: int, seed: int) -> Sample:
    """Reads the output once and holds `count` rows. Of several rows of an image, the first counts. Raises UsageError.

    A larger sample contains a smaller one, and rows that come later replace few.
    """
    check_file(output, "--output", or_folder=True)
    named = f"--output {str(output)!r}"
    held: dict[str, Sampled] = {}
    heap: list[tuple[int, str]] = []  # of negative ranks: the worst first
    answered = unparsed = 0
    for _, line in lines_of(output, named):
        row = _row(line)
        if row is None:
            continue
        if row.get("annotations_error") is True:
            unparsed += 1
            continue
        answered += 1
        path, caption = row["image_path"], row.get("caption")
        entry = (-rank_of(path, seed), path)
        if path in held or (len(heap) == count and entry <= heap[0]):
            continue
        if len(heap) == count:
            del held[heapq.heapreplace(heap, entry)[1]]
        else:
            heapq.heappush(heap, entry)
        held[path] = Sampled(path, caption if isinstance(caption, str) else "", line.rstrip() + b"\n")
    if not held:
        raise UsageError(
            f"{named} has no row with image_path, objects and an annotation: name the output of a run that answered"
        )
    return Sample([held[path] for _, path in sorted(heap, reverse=True)], answered, unparsed)


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of an output, or None if the line is none."""
    row = json_object(line) or {}
    path = row.get("image_path")
    return row if isinstance(path, str) and path and isinstance(row.get("objects"), list) else None
