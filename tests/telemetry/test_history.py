"""Histories are bounded and exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_annotate.telemetry.history import MOST_POINTS, History


def test_a_run_of_any_length_keeps_a_bounded_number_of_points_and_its_exact_totals() -> None:
    history = History()
    for second in range(100_000):
        history.add(second, {"load": second % 100, "power": None if second < 50_000 else 300})
    points = history.points("load")
    assert MOST_POINTS <= len(points) < 2 * MOST_POINTS
    assert all(value == pytest.approx(49.5, abs=20) for _, value in points[:-1])
    assert history.totals["load"].mean == pytest.approx(49.5)
    assert (history.totals["load"].max, history.totals["power"].count) == (99, 50_000)
    assert history.points("power")[0][1] is None
    assert history.points("power")[-1][1] == 300
    assert [at for at, _ in points] == sorted(at for at, _ in points)


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=3 * MOST_POINTS))
def test_a_history_of_anything_has_its_mean_and_extremes(values: list[float | None]) -> None:
    history = History()
    for second, value in enumerate(values):
        history.add(second, {"x": value})
    known = [value for value in values if value is not None]
    assert ("x" in history.totals) == bool(known)
    if known:
        totals = history.totals["x"]
        assert totals.mean == pytest.approx(sum(known) / len(known), abs=1e-3)
        assert (totals.max, totals.first, totals.last) == (max(known), known[0], known[-1])
