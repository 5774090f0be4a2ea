"""The two passes over an output: first what is in it, then the rows that are exported. Memory does not grow with it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.export.columns import Kinds, add_kinds
from vllm_annotate.export.rows import NO_SIZE, Labeled, read_row
from vllm_annotate.export.selection import Selection, Splits, digest_of
from vllm_annotate.grounding.names import Category, name_key
from vllm_annotate.results.audited import Audited
from vllm_annotate.results.reviewed import Reviewed, is_reviewed_file
from vllm_annotate.results.written import Written
from vllm_annotate.storage.image_roots import ImageRoot

CHUNK = 65_536
MAX_NAMES = 500_000  # different spellings that are counted: about 100 MB
REPEATED, NOTHING_LEFT, RARE = "repeated image", "no object left", "rare name"


@dataclass
class Output:
    """An output and what of it is exported. Rows that people corrected take the place of the model's."""

    path: Path
    selection: Selection = field(default_factory=Selection)
    needs_size: bool = True
    image_root: ImageRoot | None = None

    def __post_init__(self) -> None:
        self._written = Written.of(self.path)
        self._repeated = b""  # for each row with an image, 1 to leave it out; empty until that is known
        self._reviewed = Reviewed(self.path)
        self._audited = Audited(self.path)

    def _lines(self) -> Iterator[bytes]:
        for line in self._written.lines():
            if line.strip():
                yield self._reviewed.in_place_of(line)

    def _row(self, line: bytes) -> Labeled | str:
        """The row, with the agreement of its audit. What people corrected is not what was audited."""
        row = read_row(line)
        if isinstance(row, str):
            return row
        if row.path in self._reviewed:
            return replace(row, reviewed=True)
        return replace(row, agreement=self._audited.of(row.path), reviewed=is_reviewed_file(self.path))

    def leave_out_repeated(self, paths: "Paths") -> bool:
        """Leaves out the later rows of an image, in all passes that follow; returns whether there are any."""
        self._repeated = paths.repeated()
        return any(self._repeated)

    def _images(self, left_out: Counter[str]) -> Iterator[Labeled]:
        for row in map(self._row, self._lines()):
            if isinstance(row, str):
                left_out[row] += 1
            else:
                yield row

    def images(
        self,
        left_out: Counter[str],
        objects_left_out: Counter[str],
        paths: "Paths | None" = None,
        wanted: Callable[[str], bool] | None = None,
    ) -> Iterator[Labeled]:
        """Yields the chosen images with their chosen objects; counts why others are left out, and notes all paths.

        Only images whose paths are `wanted` are looked at: one without a size may have to be read.
        """
        for number, row in enumerate(self._images(left_out)):
            if paths is not None:
                paths.add(row.path)
            if self._repeated and self._repeated[number]:
                left_out[REPEATED] += 1
            elif why := self.selection.against_image(row):
                left_out[why] += 1
            elif wanted is None or wanted(row.path):
                row = row.measured(self.image_root)
                if self.needs_size and row.size is None:
                    left_out[NO_SIZE] += 1
                    continue
                reasons = [self.selection.against_object(item) for item in row.objects]
                objects_left_out.update([*row.invalid, *filter(None, reasons)])
                kept = (item for item, why in zip(row.objects, reasons, strict=True) if not why)
                yield replace(row, objects=tuple(kept))


@dataclass
class Survey:
    """What the first pass found: what is chosen, and what is left out, by reason."""

    images: int = 0
    objects: int = 0
    reviewed: int = 0  # images as people corrected them
    spellings: Counter[str] = field(default_factory=Counter)
    all_names: bool = True  # whether `spellings` has them all
    left_out: Counter[str] = field(default_factory=Counter)
    objects_left_out: Counter[str] = field(default_factory=Counter)
    columns: Kinds | None = None  # the input's other columns; None: not asked for

    def add(self, row: Labeled) -> None:
        """Counts a chosen image."""
        self.images += 1
        self.objects += len(row.objects)
        self.reviewed += row.reviewed
        if self.columns is not None:
            add_kinds(self.columns, row)
        for item in row.objects:
            if item.name in self.spellings or len(self.spellings) < MAX_NAMES:
                self.spellings[item.name] += 1
            else:
                self.all_names = False


class Paths:
    """Image paths, as eight bytes each."""

    def __init__(self) -> None:
        self._latest: list[int] = []
        self._chunks: list[pl.Series] = []

    def add(self, path: str) -> None:
        """Notes a path."""
        self._latest.append(digest_of(path))
        if len(self._latest) == CHUNK:
            self._pack()

    def _pack(self) -> None:
        self._chunks.append(pl.Series(self._latest, dtype=pl.UInt64))
        self._latest = []

    def repeated(self) -> bytes:
        """For each path, 1 if it had come before, else 0. Takes about 40 bytes for each meanwhile."""
        self._pack()
        return (~pl.concat(self._chunks).is_first_distinct()).cast(pl.UInt8).to_numpy().tobytes()


def survey(output: Output, *, columns: bool = False) -> Survey:
    """Reads the output once, or twice if images are repeated. Raises UsageError if there is nothing to export."""
    found, paths = Survey(columns={} if columns else None), Paths()
    for row in output.images(found.left_out, found.objects_left_out, paths):
        found.add(row)
    if not found.left_out[REPEATED] and output.leave_out_repeated(paths):
        return survey(output, columns=columns)
    if not found.objects:
        raise UsageError(f"{output.path} has nothing to export: {in_words(found) or 'it is empty'}")
    return found


def in_words(found: Survey) -> str:
    """What is left out, with the reasons; empty if nothing is."""
    return "; ".join(
        f"{what} left out: {', '.join(f'{count} {why}' for why, count in counts.most_common())}"
        for what, counts in (("images", found.left_out), ("objects", found.objects_left_out))
        if counts
    )


def exported(output: Output, categories: dict[str, Category] | None, splits: Splits, split: str) -> Iterator[Labeled]:
    """Yields the images of a split with the objects that have a category, or all; leaves out images without any."""
    for row in output.images(Counter(), Counter(), wanted=lambda path: splits.of(path) == split):
        objects = row.objects if categories is None else tuple(o for o in row.objects if name_key(o.name) in categories)
        if objects:
            yield replace(row, objects=objects)
