"""Chooses rows to show from files of any size: a sample of all answers, and some with each flag and failure kind."""

import os
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path
from typing import Any, Generic, TypeVar

from vllm_annotate.errors import ImageFailure, UsageError
from vllm_annotate.images.prepare import thumbnail
from vllm_annotate.report.text import text_of
from vllm_annotate.results.audited import Audited
from vllm_annotate.results.doubt import CORRECTED, doubt
from vllm_annotate.results.written import lines_of, written_files
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.packed import is_packed
from vllm_annotate.storage.workspace import Workspace

READ_BYTES, WINDOW_BYTES = 256 * 1024 * 1024, 4 * 1024 * 1024  # of a larger file, evenly spaced windows
TAIL_BYTES, TAIL_LINES = 256 * 1024, 100
NEWEST_PARTS = 8
MOST_FILES = 12  # of a folder
LONGEST_LINE_BYTES = 1024 * 1024
SAMPLED, FLAGGED_EACH, FAILED_EACH, MOST = 100, 12, 8, 200
MOST_MARKS, MOST_KINDS = 8, 40  # per row, in total
NO_ANNOTATION, OTHERS = "no annotation", "others"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """A row of the output or the failures file with its image: a small JPEG, or why there is none."""

    row: dict[str, Any]
    jpeg: bytes | None
    size: tuple[int, int] = (0, 0)  # of the JPEG, pixels
    why_not: str = ""


@dataclass
class Reservoir(Generic[Item]):
    """A uniform random sample of `size` items."""

    size: int
    rng: random.Random
    items: list[Item] = field(default_factory=list)
    offered: int = 0

    def offer(self, item: Item) -> None:
        """Adds the item to the sample, or not."""
        self.offered += 1
        if len(self.items) < self.size:
            self.items.append(item)
        elif (at := self.rng.randrange(self.offered)) < self.size:
            self.items[at] = item


def choose_rows(workspace: Workspace) -> list[dict[str, Any]]:
    """At most MOST rows, doubtful ones first: answers with every flag, failures of every kind, a sample of all."""
    rng = random.Random(0)
    sampled = Reservoir[bytes](SAMPLED, rng)
    marked: defaultdict[str, Reservoir[bytes]] = defaultdict(lambda: Reservoir(FLAGGED_EACH, rng))
    for line in spread_lines(workspace.answers):
        sampled.offer(line)
        for mark in _marks(line):
            marked[mark if mark in marked or len(marked) < MOST_KINDS else OTHERS].offer(line)
    failed: defaultdict[str, Reservoir[bytes]] = defaultdict(lambda: Reservoir(FAILED_EACH, rng))
    for line in spread_lines(workspace.failures):
        if (row := json_object(line)) is not None:
            kind = failure_of(row)["kind"]
            failed[kind if kind in failed or len(failed) < MOST_KINDS else OTHERS].offer(line)
    in_turn = [*_round_robin(marked), *_round_robin(failed)][: MOST - len(sampled.items)]
    rows = (json_object(line) for line in dict.fromkeys([*in_turn, *sampled.items]))
    return doubtful_first([row for row in rows if row is not None], Audited(workspace.answers))


def doubtful_first(rows: Sequence[dict[str, Any]], audited: Audited) -> list[dict[str, Any]]:
    """The rows by doubt; among those that are flagged or have no annotation, each kind in turn."""
    kinds: Counter[str] = Counter()

    def rank(row: dict[str, Any]) -> tuple[int, float]:
        doubtful = doubt(row, audited.of(row.get("image_path")))
        kind = next(iter(marks_of(row)), "") if doubtful >= CORRECTED else ""
        kinds[kind] += bool(kind)
        return (kinds[kind] if kind else len(rows)), -doubtful

    return sorted(rows, key=rank)


def failure_of(row: dict[str, Any]) -> dict[str, Any]:
    """Kind and message of a failed row; tolerates any content."""
    failure = row.get("failure")
    found = failure if isinstance(failure, dict) else {}
    return {"kind": text_of(found.get("kind", "unknown"), 60), "message": text_of(found.get("message"))}


def marks_of(row: dict[str, Any]) -> list[str]:
    """The flags of an answer, plus NO_ANNOTATION if it has none."""
    flags = row.get("flags")
    marks = (
        [text_of(flag, 60) for flag in flags[:MOST_MARKS] if isinstance(flag, str)] if isinstance(flags, list) else []
    )
    return [*marks, *([NO_ANNOTATION] if row.get("annotations_error") is True else [])]


def newest_parts(workspace: Workspace, suffix: str) -> list[Path]:
    """The parts of the chunks that started last; a run may have tens of thousands."""
    found: list[Path] = []
    for parts in [workspace.parts, *workspace.states.glob("*/parts")]:
        names = os.listdir(parts) if parts.is_dir() else []  # noqa: PTH208
        of_kind = (name for name in names if name.partition(".")[2] == suffix)
        found += [parts / name for name in nlargest(NEWEST_PARTS, of_kind)]
    return found[-NEWEST_PARTS:]


def newest_files(output: Path) -> list[Path]:
    """The output, or of a folder the newest files."""
    if not output.is_dir():
        return [output]
    return nlargest(NEWEST_PARTS, written_files(output), key=lambda path: path.stat().st_mtime_ns)


def newest_rows(paths: Sequence[Path], count: int) -> list[dict[str, Any]]:
    """The last rows of the files, at most `count`."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        lines = tail_lines(path)
        found = [row for line in reversed(lines) if (row := json_object(line)) is not None]
        rows += found[: count - len(rows)]
        if len(rows) >= count:
            break
    return rows


def with_images(rows: Sequence[dict[str, Any]], image_root: ImageRoot, side: int) -> Iterator[Example]:
    """Yields each row with a JPEG of its image, at most `side` pixels long. Decodes images: run it in a thread."""
    if isinstance(image_root, Path):
        yield from (_example(row, image_root, side) for row in rows)
        return
    paths = [text_of(row.get("image_path")) for row in rows]
    examples = {at: _example(rows[at], image_root, side) for at in image_root.in_turn(paths)}
    yield from (examples[at] for at in range(len(rows)))


def _example(row: dict[str, Any], image_root: ImageRoot, side: int) -> Example:
    try:
        return Example(row, *thumbnail(image_root, text_of(row.get("image_path")), side))
    except (ImageFailure, OSError, UsageError) as error:
        return Example(row, None, why_not=str(error))


def spread_lines(path: Path, read_bytes: int = 0, window_bytes: int = 0) -> Iterator[bytes]:
    """Yields the lines of a file; if it exceeds `read_bytes`, the complete lines of windows spread over it.

    Of a folder those of MOST_FILES files, evenly chosen.
    """
    most, window = read_bytes or READ_BYTES, window_bytes or WINDOW_BYTES
    if path.is_dir():
        files = written_files(path)
        chosen = files[:: -(-len(files) // MOST_FILES) or 1]
        for each in chosen:
            share = most // len(chosen)
            yield from spread_lines(each, share, min(window, share))
        return
    if is_packed(path):
        yield from _first_lines(path, most)
        return
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            windows = [(0, size)]
            if size > most:
                count = most // window
                windows = [(number * (size - window) // max(1, count - 1), window) for number in range(count)]
            for start, length in windows:
                yield from _whole_lines(file, start, length)
    except FileNotFoundError:
        return


def _first_lines(path: Path, most: int) -> Iterator[bytes]:
    """The first lines of a compressed file, which has no windows, or of one that breaks off: the run names that."""
    left = most
    with suppress(UsageError):
        for line in lines_of(path):
            if (left := left - len(line)) < 0:
                return
            yield line


def _whole_lines(file: Any, start: int, length: int) -> Iterator[bytes]:
    file.seek(max(0, start - 1))
    if start:
        file.readline(LONGEST_LINE_BYTES)  # the rest of a line that starts before the window
    inside = False  # in a line whose start was dropped
    while file.tell() < start + length:
        line = file.readline(LONGEST_LINE_BYTES)
        if not line:
            return
        ends = line.endswith(b"\n")
        if ends and not inside:
            yield line
        inside = not ends  # too long, or cut off by the end of the file


def tail_lines(path: Path) -> list[bytes]:
    """The complete lines at the end of a file that may still grow."""
    if is_packed(path):
        return list(deque(_first_lines(path, READ_BYTES), maxlen=TAIL_LINES))
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - TAIL_BYTES)
            return list(_whole_lines(file, start, size - start))
    except OSError:
        return []


def _marks(line: bytes) -> list[str]:
    # Search the bytes first: parsing every line as JSON would take minutes.
    if b'"flags":' not in line and b'"annotations_error":true' not in line and b'"annotations_error": true' not in line:
        return []
    return marks_of(json_object(line) or {})


def _round_robin(reservoirs: dict[str, Reservoir[bytes]]) -> Iterator[bytes]:
    """Yields one of each kind in turn, so that no kind crowds out another."""
    for turn in range(max((reservoir.size for reservoir in reservoirs.values()), default=0)):
        for name in sorted(reservoirs):
            if turn < len(reservoirs[name].items):
                yield reservoirs[name].items[turn]
