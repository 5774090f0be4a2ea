"""What agreement says about boxes whose truth is known: AUROC, and a monotone map to the probability of being right."""

from typing import Any

import numpy as np

from vllm_annotate.evaluation.matching import Booleans, Floats, Integers
from vllm_annotate.evaluation.scores import interval, number_of, resampled

FEWEST = 20  # boxes with a known truth; fewer say nothing


def calibrated(agreement: Floats, image: Integers, images: int, right: Booleans, known: Booleans) -> dict[str, Any]:
    """AUROC, the map, and the share of right boxes among all boxes with its 95 % interval.

    All arrays but `images`, the number of images, have an entry a box; `right` counts only where `known`.
    """
    levels, level = np.unique(agreement, return_inverse=True)
    key = image * len(levels) + level
    counts = np.hstack([
        np.bincount(key[chosen], minlength=images * len(levels)).reshape(images, -1)
        for chosen in (np.ones(len(key), np.bool_), known, known & right)
    ]).astype(np.float64)  # fmt: skip
    whole = counts.sum(axis=0)
    probability = _probabilities(whole)
    return {
        "boxes": int(known.sum()),
        "auroc": auroc(agreement[known], right[known]),
        "precision": number_of(_precision(whole)),
        "precision_interval": interval(np.array([_precision(sums) for sums in resampled(counts)])),
        "map": [
            {"agreement": number_of(at), "probability": number_of(likely), "boxes": int(seen)}
            for at, likely, seen in zip(levels, probability, np.split(whole, 3)[1], strict=True)
        ],
    }


def auroc(score: Floats, right: Booleans) -> float | None:
    """The probability that a right box has a higher score than a wrong one, ties half. None without both kinds."""
    levels, level = np.unique(score, return_inverse=True)
    of_right = np.bincount(level[right], minlength=len(levels))
    of_wrong = np.bincount(level[~right], minlength=len(levels))
    if not of_right.sum() or not of_wrong.sum():
        return None
    below = np.cumsum(of_wrong) - of_wrong
    return number_of((of_right * (below + of_wrong / 2)).sum() / (of_right.sum() * of_wrong.sum()))


def isotonic(value: Floats, weight: Floats) -> Floats:
    """The rising sequence that is closest to the values, by pooling neighbours that fall; NaN if all weights are 0."""
    pools: list[list[float]] = []  # sum, weight, length
    for one, heavy in zip(value, weight, strict=True):
        pools.append([one * heavy, heavy, 1])
        while len(pools) > 1 and _falls(pools[-2], pools[-1]):
            last = pools.pop()
            pools[-1] = [sum(pair) for pair in zip(pools[-1], last, strict=True)]
    means = [total / heavy if heavy else np.nan for total, heavy, _ in pools]
    return np.repeat(means, [int(length) for *_, length in pools])


def _falls(one: list[float], other: list[float]) -> bool:
    """Whether the second pool is not above the first; a pool without weight joins its neighbour."""
    return not one[1] or not other[1] or one[0] / one[1] >= other[0] / other[1]


def _probabilities(counts: Floats) -> Floats:
    _, known, right = np.split(counts, 3)
    return isotonic(np.divide(right, known, out=np.zeros_like(right), where=known > 0), known)


def _precision(counts: Floats) -> float:
    boxes = np.split(counts, 3)[0]
    return float((_probabilities(counts) * boxes).sum() / boxes.sum()) if boxes.sum() else float("nan")
