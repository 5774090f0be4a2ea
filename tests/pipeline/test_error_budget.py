"""The error budget: when failures stop a chunk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_annotate.errors import ErrorBudgetExceeded, ImageFailure
from vllm_annotate.pipeline.error_budget import LAST_IMAGES, ErrorBudget

MISSING = ImageFailure("missing", "a.jpg is missing")


def failures_until_it_stops(budget: ErrorBudget, images: int) -> int:
    for number in range(1, images + 1):
        try:
            budget.failed(MISSING, images)
        except ErrorBudgetExceeded:
            return number
    return 0


@pytest.mark.parametrize(
    ("share", "images", "failures"),
    [
        (0.5, 20, 11),
        (0.5, 100, 51),
        (0.5, 500, 251),
        (0.5, 20_000, 251),  # not 10,001: the rest of a large chunk is not asked in vain
        (0.1, 60, 11),
        (0.1, 5, 0),  # ten are always allowed
        (1, 20_000, 0),
        (0, 20_000, 1),
    ],
)
def test_a_chunk_stops_at_its_share_of_the_last_images(share: float, images: int, failures: int) -> None:
    assert failures_until_it_stops(ErrorBudget(share), images) == failures


def test_failures_of_all_chunks_count_until_one_has_stopped() -> None:
    budget = ErrorBudget(0.5)
    for _ in range(250):
        budget.failed(MISSING, 500)
    with pytest.raises(ErrorBudgetExceeded) as stopped:
        budget.failed(ImageFailure("corrupt", "b.jpg is cut off"), 1000)
    assert str(stopped.value) == (
        "251 of the last 251 images failed (250 missing, 1 corrupt), more than the error budget of 0.5 allows; "
        "last failure: b.jpg is cut off"
    )
    assert failures_until_it_stops(budget, 1000) == 251


@given(st.lists(st.booleans(), max_size=2000), st.integers(1, 2000), st.sampled_from([0.0, 0.02, 0.3, 1.0]))
def test_what_is_judged_are_the_last_images(outcomes: list[bool], images: int, share: float) -> None:
    budget, settled = ErrorBudget(share), list[bool]()
    for failed in outcomes:
        settled.append(failed)
        if not failed:
            budget.answered()
            continue
        judged = min(images, LAST_IMAGES)
        is_exceeded = sum(settled[-judged:]) > (max(10, share * judged) if share else 0)
        try:
            budget.failed(MISSING, images)
        except ErrorBudgetExceeded:
            assert is_exceeded
            settled.clear()
        else:
            assert not is_exceeded
