"""Counts of matched and unmatched boxes, and what follows from them: precision, recall, F1, mean IoU, intervals."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vllm_annotate.evaluation.joining import Batch
from vllm_annotate.evaluation.matching import Booleans, Floats, Matches, areas, matched, overlapping

THRESHOLDS = (0.5, 0.75)
# Per threshold true positives, false positives and false negatives; the sum of the IoU of pairs matched at 0.5.
COLUMNS = 3 * len(THRESHOLDS) + 1
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}  # pixels, as in COCO
RESAMPLES, MOST_UNITS = 1000, 10_000


@dataclass
class Tally:
    """Counts by name and by size of box; COLUMNS each."""

    by_name: Floats = field(default_factory=lambda: np.zeros((0, COLUMNS)))
    by_size: Floats = field(default_factory=lambda: np.zeros((len(SIZES), COLUMNS)))

    def add(self, batch: Batch, names: int) -> tuple[Floats, list[Matches]]:
        """Counts a batch with so many names; returns the counts of its images, and the matches at each threshold."""
        truth, answer = batch.truth, batch.answer
        pairs = overlapping(
            truth.box, answer.box, truth.image * names + truth.name, answer.image * names + answer.name, truth.crowd
        )
        found = [matched(pairs, len(answer.box), truth.crowd, truth.crowd, threshold) for threshold in THRESHOLDS]
        none = np.zeros(len(answer.box), np.bool_)
        by_image = counted(found, truth.image, answer.image, truth.crowd, none, len(batch.images))
        if len(self.by_name) < names:
            self.by_name = np.concatenate([self.by_name, np.zeros((names - len(self.by_name), COLUMNS))])
        self.by_name += counted(found, truth.name, answer.name, truth.crowd, none, names)
        truth_area = areas(truth.box) * batch.unit[truth.image]
        answer_area = areas(answer.box) * batch.unit[answer.image]
        for number, (low, high) in enumerate(SIZES.values()):
            ignored = truth.crowd | ~((truth_area >= low) & (truth_area <= high))
            outside = ~((answer_area >= low) & (answer_area <= high))
            sized = [matched(pairs, len(answer.box), truth.crowd, ignored, threshold) for threshold in THRESHOLDS]
            self.by_size[number] += counted(sized, truth.image, answer.image, ignored, outside, len(batch.images)).sum(
                axis=0
            )
        return by_image, found


def counted(
    found: list[Matches], truth_key: Any, answer_key: Any, ignored: Booleans, outside: Booleans, keys: int
) -> Floats:
    """Counts per key, shape (keys, COLUMNS).

    A match with `ignored` truth counts as nothing, nor does an answer without a match if it is `outside`.
    """
    columns: list[Any] = []
    for matches in found:
        taken = matches.truth >= 0
        hit = taken.copy()
        hit[taken] = ~ignored[matches.truth[taken]]
        missed = ~ignored
        missed[matches.truth[hit]] = False
        columns += [
            np.bincount(answer_key[hit], minlength=keys),
            np.bincount(answer_key[~taken & ~outside], minlength=keys),
            np.bincount(truth_key[missed], minlength=keys),
        ]
        if len(columns) == 3:  # the first threshold
            shared = np.bincount(answer_key[hit], weights=matches.iou[hit], minlength=keys)
    return np.stack([*columns, shared], axis=1).astype(np.float64)


def summed(counts: Floats) -> Floats:
    """The counts of all images together, in float64: float32 holds each, but only sums up to 16.7 million exactly."""
    total: Floats = counts.sum(axis=0, dtype=np.float64)
    return total


def f1_of_images(counts: Floats) -> Floats:
    """F1 at IoU 0.5 of each image: 1 if neither side has a box, as they agree."""
    hit, extra, missed = counts[:, :3].astype(np.float64).T
    boxes = 2 * hit + extra + missed
    return np.where(boxes > 0, 2 * hit / np.maximum(boxes, 1), 1.0)


def f1_of(counts: Floats) -> Floats:
    """F1 at IoU 0.5 of counts of shape (…, COLUMNS); NaN where undefined."""
    by_threshold: Any = rates(counts)["f1"]
    f1: Floats = by_threshold[str(THRESHOLDS[0])]
    return f1


def mean_interval(values: Floats) -> list[float | None] | None:
    """The 95 % interval of a mean of images, from resamples."""
    sums = resampled(np.column_stack([values, np.ones(len(values))]))
    return interval(sums[:, 0] / sums[:, 1])


def rates(counts: Floats) -> dict[str, dict[str, Floats] | Floats]:
    """Precision, recall and F1 by threshold, and the mean IoU, of counts of shape (…, COLUMNS). NaN where undefined."""
    precision, recall, f1 = {}, {}, {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for number, threshold in enumerate(THRESHOLDS):
            hit, extra, missed = (counts[..., 3 * number + column] for column in range(3))
            precision[str(threshold)] = hit / (hit + extra)
            recall[str(threshold)] = hit / (hit + missed)
            f1[str(threshold)] = 2 * hit / (2 * hit + extra + missed)
        mean_iou = counts[..., -1] / counts[..., 0]
    return {"precision": precision, "recall": recall, "f1": f1, "mean_iou": mean_iou}


def scores(counts: Floats) -> dict[str, Any]:
    """The rates of one sum of counts, for JSON: None where undefined."""
    return _each(rates(counts), lambda value: number_of(value))


def intervals(counts: Floats, seed: int = 0) -> dict[str, Any]:
    """95 % intervals of the rates, from resamples of the images (rows of counts): [low, high], or None."""
    return _each(rates(resampled(counts, seed)), interval)


def interval(values: Floats) -> list[float | None] | None:
    """The middle 95 % of values; None if there are none."""
    known = values[np.isfinite(values)]
    return [number_of(bound) for bound in np.percentile(known, [2.5, 97.5])] if len(known) else None


def resampled(counts: Floats, seed: int = 0) -> Floats:
    """Sums of the counts of RESAMPLES bootstrap samples, shape (RESAMPLES, columns).

    More than MOST_UNITS images are drawn in that many random groups, whose sums vary as the images' do.
    """
    rng = np.random.default_rng(seed)
    if len(counts) > MOST_UNITS:
        order, edges = rng.permutation(len(counts)), np.linspace(0, len(counts), MOST_UNITS, endpoint=False).astype(int)
        counts = np.add.reduceat(counts[order], edges, axis=0, dtype=np.float64)
    units = len(counts)
    sums = np.zeros((RESAMPLES, counts.shape[1]))
    for number in range(RESAMPLES if units else 0):
        sums[number] = np.bincount(rng.integers(units, size=units), minlength=units) @ counts
    return sums


def number_of(value: Any) -> float | None:
    """The number rounded for people and JSON; None if it is not finite."""
    return round(float(value), 6) if np.isfinite(value) else None


def _each(found: dict[str, Any], use: Any) -> dict[str, Any]:
    return {
        name: {key: use(one) for key, one in value.items()} if isinstance(value, dict) else use(value)
        for name, value in found.items()
    }
