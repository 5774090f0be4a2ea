"""Matches boxes of answers with boxes of the truth as COCO's evaluation does, for any number of images at once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
NEARLY_ONE = 1 - 1e-10  # COCO's: a threshold of 1 accepts what rounding made of equal boxes


@dataclass(frozen=True)
class Pairs:
    """All pairs of overlapping boxes of one group: an image and a name."""

    answer: Integers  # index of the box
    truth: Integers
    iou: Floats  # over the answer's area alone if the truth is a crowd
    rank: Integers  # of each answer within its group, in answer order


@dataclass(frozen=True)
class Matches:
    """The truth box of each answer box, or -1, and the IoU of the two, or 0."""

    truth: Integers
    iou: Floats


def match(
    truth: Any,
    answer: Any,
    truth_group: Any,
    answer_group: Any,
    threshold: float = 0.5,
    crowd: Any = None,
    ignored: Any = None,
) -> Matches:
    """Matches boxes `[x1, y1, x2, y2]`, array-like of shape (n, 4), of equal group.

    A group is any integer that stands for an image and a name. Greedy, as in pycocotools' `evaluateImg` for detections
    with falling scores: each answer in turn gets the free truth box with the highest IoU, at least `threshold`; of
    equal ones the last. `ignored` truth is taken only if there is no other, and `crowd` truth, which is ignored too,
    any number of times.
    """
    boxes, answers = _boxes(truth), _boxes(answer)
    crowds = np.zeros(len(boxes), np.bool_) if crowd is None else np.asarray(crowd, np.bool_)
    pairs = overlapping(boxes, answers, np.asarray(truth_group), np.asarray(answer_group), crowds)
    unwanted = crowds if ignored is None else crowds | np.asarray(ignored, np.bool_)
    return matched(pairs, len(answers), crowds, unwanted, threshold)


def overlapping(truth: Floats, answer: Floats, truth_group: Any, answer_group: Any, crowd: Booleans) -> Pairs:
    """All pairs of `match`, for several thresholds; boxes are `[x, y, width, height]`."""
    order = np.argsort(truth_group, kind="stable")
    in_order = truth_group[order]
    first = np.searchsorted(in_order, answer_group, "left")
    count = np.searchsorted(in_order, answer_group, "right") - first
    of_answer = np.repeat(np.arange(len(answer)), count)
    of_truth = order[ranges(first, count)]
    iou = _iou(answer[of_answer], truth[of_truth], crowd[of_truth])
    kept = iou > 0
    return Pairs(of_answer[kept], of_truth[kept], iou[kept], _ranks(answer_group))


def matched(pairs: Pairs, answers: int, crowd: Booleans, ignored: Booleans, threshold: float) -> Matches:
    """Greedy matching. Answers of one rank are in different groups, and so never want the same truth box."""
    found = Matches(np.full(answers, -1, np.int64), np.zeros(answers))
    close = pairs.iou >= min(threshold, NEARLY_ONE)
    answer, truth, iou = pairs.answer[close], pairs.truth[close], pairs.iou[close]
    # The last free pair of an answer in this order is the one that it gets.
    order = np.lexsort((truth, iou, ~ignored[truth], answer, pairs.rank[answer]))
    answer, truth, iou = answer[order], truth[order], iou[order]
    free = np.ones(len(ignored), np.bool_)
    for pair in np.split(np.arange(len(answer)), np.flatnonzero(np.diff(pairs.rank[answer])) + 1):
        usable = pair[free[truth[pair]]]
        is_last = np.ones(len(usable), np.bool_)
        is_last[:-1] = answer[usable[1:]] != answer[usable[:-1]]
        best = usable[is_last]
        found.truth[answer[best]], found.iou[answer[best]] = truth[best], iou[best]
        free[truth[best]] = crowd[truth[best]]
    return found


def ranges(first: Any, count: Any) -> Integers:
    """The numbers from each `first` on, `count` of them, in one array."""
    ends = np.cumsum(count)
    numbers: Integers = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + count, count)
    return numbers


def _boxes(boxes: Any) -> Floats:
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])


def _ranks(group: Any) -> Integers:
    order = np.argsort(group, kind="stable")
    in_order = group[order]
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - np.searchsorted(in_order, in_order, "left")
    return ranks


def _iou(answer: Floats, truth: Floats, crowd: Booleans) -> Floats:
    """The IoU of each row's two boxes, computed as `bbIou` in pycocotools does, so that ties stay ties."""
    ends = np.minimum(answer[:, 2:] + answer[:, :2], truth[:, 2:] + truth[:, :2])
    sides = ends - np.maximum(answer[:, :2], truth[:, :2])
    shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    own, other = areas(answer), areas(truth)
    return np.asarray(shared / np.where(crowd, own, own + other - shared))


def areas(boxes: Floats) -> Floats:
    """The area of each box `[x, y, width, height]`."""
    return np.asarray(boxes[:, 2] * boxes[:, 3])
