"""The images to show: those with the lowest F1, each with the boxes of both sides."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from vllm_annotate.evaluation.joining import Batch
from vllm_annotate.evaluation.matching import Floats, Matches
from vllm_annotate.evaluation.packed import SCALE

MOST_SHOWN, MOST_ITEMS = 60, 80  # images; objects of an image
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """An object of an image: what became of it, and its box on either side, 0–1000."""

    kind: str
    name: str
    truth: Corners | None = None
    answer: Corners | None = None
    iou: float = 0.0
    note: str = ""  # instead of kind and IoU


@dataclass(frozen=True)
class Shown:
    """An image with its objects."""

    image_path: str
    f1: float
    errors: int
    items: list[Item]
    left_out: int = 0  # further items

    def names(self, kind: str) -> list[str]:
        """The names of the objects of this kind."""
        return [item.name for item in self.items if item.kind == kind]


@dataclass(frozen=True)
class Kinds:
    """The words for what can become of an object."""

    matched: str = "found"
    truth_only: str = "missed"
    answer_only: str = "extra"
    moved: str = ""  # matched, with an IoU under `least`
    least: float = 0.0


@dataclass
class Worst:
    """The images with the lowest F1, of those the ones with most errors; never more than MOST_SHOWN in memory."""

    names: Sequence[str]
    kinds: Kinds = field(default_factory=Kinds)
    _heap: list[tuple[tuple[float, int, int], Shown]] = field(default_factory=list)
    _serial: Any = field(default_factory=lambda: count(0, -1))

    def offer(self, batch: Batch, counts: Floats, matches: Matches) -> None:
        """Offers the images of a batch; `counts` and `matches` are those at IoU 0.5."""
        hit, extra, missed = (counts[:, column] for column in range(3))
        moved = self._moved(batch, matches) if self.kinds.moved else np.zeros(len(hit))
        errors = extra + missed + moved
        with np.errstate(invalid="ignore"):
            f1 = 2 * hit / (2 * hit + extra + missed)
        wrong = np.flatnonzero(errors > 0)
        for image in wrong[np.lexsort((-errors[wrong], f1[wrong]))][:MOST_SHOWN]:
            key = (-float(f1[image]), int(errors[image]), next(self._serial))
            if len(self._heap) == MOST_SHOWN and key <= self._heap[0][0]:
                break
            shown = self._shown(batch, int(image), matches, float(f1[image]), int(errors[image]))
            (heapq.heappush if len(self._heap) < MOST_SHOWN else heapq.heapreplace)(self._heap, (key, shown))

    def images(self) -> list[Shown]:
        """The images, the worst first."""
        return [shown for _, shown in sorted(self._heap, key=lambda entry: entry[0], reverse=True)]

    def _moved(self, batch: Batch, matches: Matches) -> Floats:
        moved = (matches.truth >= 0) & (matches.iou < self.kinds.least)
        return np.bincount(batch.answer.image[moved], minlength=len(batch.images)).astype(np.float64)

    def _shown(self, batch: Batch, image: int, matches: Matches, f1: float, errors: int) -> Shown:
        truths = _rows(batch.truth.image, image)
        answers = _rows(batch.answer.image, image)
        partner = {int(matches.truth[row]): row for row in answers if matches.truth[row] >= 0}
        size = batch.size[image]
        items = []
        for row in answers:
            truth, iou = int(matches.truth[row]), float(matches.iou[row])
            name, answer = self.names[batch.answer.name[row]], _scaled(batch.answer.box[row], size)
            if truth < 0:
                items.append(Item(self.kinds.answer_only, name, None, answer))
            elif batch.truth.crowd[truth]:
                items.append(Item("ignored", name, None, answer))
            else:
                kind = self.kinds.moved if self.kinds.moved and iou < self.kinds.least else self.kinds.matched
                items.append(Item(kind, name, _scaled(batch.truth.box[truth], size), answer, iou))
        for row in truths:
            if row not in partner and not batch.truth.crowd[row]:
                name = self.names[batch.truth.name[row]]
                items.append(Item(self.kinds.truth_only, name, _scaled(batch.truth.box[row], size)))
        order = {self.kinds.truth_only: 0, self.kinds.answer_only: 1, self.kinds.moved: 2}
        items.sort(key=lambda item: order.get(item.kind, 3))
        return Shown(batch.paths[image], f1, errors, items[:MOST_ITEMS], max(0, len(items) - MOST_ITEMS))


def _rows(image_of: Any, image: int) -> range:
    """The rows of an image in boxes that are in the order of the images."""
    return range(int(np.searchsorted(image_of, image, "left")), int(np.searchsorted(image_of, image, "right")))


def corners(box: Floats) -> Corners:
    """Left, top, right and bottom of a box `[x, y, width, height]`."""
    x, y, width, height = (float(number) for number in box)
    return x, y, x + width, y + height


def _scaled(box: Floats, size: Floats) -> Corners:
    return corners(box / np.tile(size, 2) * SCALE)
