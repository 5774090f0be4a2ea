"""Scores and their intervals."""

from typing import Any

import numpy as np
import pytest

from vllm_annotate.evaluation.matching import Floats
from vllm_annotate.evaluation.scores import COLUMNS, MOST_UNITS, intervals, resampled, scores, summed


def drawn(rng: np.random.Generator, images: int) -> Floats:
    """Counts of images that are each easy or hard, so that the boxes of one image err together."""
    chance = rng.choice((0.95, 0.5), size=images)
    boxes = rng.integers(1, 9, size=images)
    counts = np.zeros((images, COLUMNS))
    for at in (0, 3):
        hit = rng.binomial(boxes, chance)
        counts[:, at], counts[:, at + 1], counts[:, at + 2] = hit, rng.poisson(1.0, images), boxes - hit
    counts[:, -1] = counts[:, 0] * rng.uniform(0.6, 0.9, images)
    return counts


TRUE = {  # of `drawn`: 4.5 boxes an image, of which 72.5 % are found, and one extra
    "recall": 0.725,
    "precision": 4.5 * 0.725 / (4.5 * 0.725 + 1),
    "f1": 2 * 4.5 * 0.725 / (2 * 4.5 * 0.725 + 1 + 4.5 * 0.275),
}


def test_intervals_cover_the_true_value_in_at_least_ninety_of_a_hundred_samples() -> None:
    covered = dict.fromkeys([*TRUE, "mean_iou"], 0)
    for seed in range(100):
        found = intervals(drawn(np.random.default_rng(seed), 300), seed)
        for name in covered:
            low, high = found[name]["0.5"] if name in TRUE else found[name]
            covered[name] += low <= TRUE.get(name, 0.75) <= high
    assert min(covered.values()) >= 90, covered


def test_intervals_of_very_many_images_are_those_of_all_of_them() -> None:
    counts = drawn(np.random.default_rng(1), 3 * MOST_UNITS)
    found = intervals(counts)["recall"]["0.5"]
    own = counts[:, 0] - TRUE["recall"] * (counts[:, 0] + counts[:, 2])
    error = own.std() / np.sqrt(len(counts)) / (counts[:, 0] + counts[:, 2]).mean()
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_boxes_are_counted_exactly_beyond_the_whole_numbers_of_float32() -> None:
    counts: Any = np.full((20_001, COLUMNS), 1999, np.float32)  # 40 million boxes, an odd number of them
    counts[0] = 2000
    exact = 1999 * 20_000 + 2000
    assert summed(counts).tolist() == [exact] * COLUMNS


def test_the_same_images_give_the_same_intervals() -> None:
    counts = drawn(np.random.default_rng(0), 50)
    assert (resampled(counts) == resampled(counts)).all()


def test_what_is_undefined_is_null() -> None:
    nothing: Any = np.zeros((3, COLUMNS))
    assert scores(nothing.sum(axis=0)) == {
        "precision": {"0.5": None, "0.75": None}, "recall": {"0.5": None, "0.75": None},
        "f1": {"0.5": None, "0.75": None}, "mean_iou": None,
    }  # fmt: skip
    assert intervals(nothing)["mean_iou"] is None
    assert intervals(nothing[:0])["f1"] == {"0.5": None, "0.75": None}
