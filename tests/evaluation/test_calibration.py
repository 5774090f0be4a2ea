"""AUROC, the monotone map, and the estimate with its interval, against what counting pairs gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_annotate.evaluation.calibration import auroc, calibrated, isotonic

Boxes = list[tuple[int, bool]]
boxes = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40)


@given(boxes)
def test_auroc_is_the_share_of_pairs_in_the_right_order(drawn: Boxes) -> None:
    score, right = (np.array([box[side] for box in drawn]) for side in (0, 1))
    pairs = [(one > other) + (one == other) / 2 for one, good in drawn if good for other, bad in drawn if not bad]
    found = auroc(score.astype(float), right.astype(bool))
    assert found == (pytest.approx(np.mean(pairs), abs=1e-6) if pairs else None)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_map_rises_and_keeps_the_weighted_mean(drawn: list[tuple[float, int]]) -> None:
    value, weight = (np.array([pair[side] for pair in drawn], float) for side in (0, 1))
    fitted = isotonic(value, weight)
    if not weight.sum():
        assert np.isnan(fitted).all()
        return
    assert (np.diff(fitted) >= -1e-12).all()
    assert (fitted * weight).sum() == pytest.approx((value * weight).sum())


def test_what_rises_already_stays() -> None:
    assert isotonic(np.array([0.1, 0.4, 0.9]), np.ones(3)).tolist() == [0.1, 0.4, 0.9]
    assert isotonic(np.array([0.9, 0.1]), np.array([1.0, 3.0])) == pytest.approx([0.3, 0.3])


def test_boxes_without_a_known_truth_count_with_the_probability_of_their_agreement() -> None:
    agreement = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    known = np.array([True, True, True, True, False, False])
    right = np.array([False, False, True, True, False, False])
    found = calibrated(agreement, np.array([0, 0, 1, 1, 2, 2]), 3, right, known)
    assert found["auroc"] == 1
    assert found["precision"] == pytest.approx(4 / 6, abs=1e-6)
    assert [each["probability"] for each in found["map"]] == [0, 1]
