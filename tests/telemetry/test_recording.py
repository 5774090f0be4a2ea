"""A look a second."""

import pytest

from flows.telemetry.recording import LOOKING_SHARE, STALE_SECONDS, pause_after


@pytest.mark.parametrize(("looking", "pause"), [(0.0, 1.0), (0.01, 1.0), (0.05, 2.5), (5.0, 4.0)])
def test_a_server_that_takes_long_to_tell_is_looked_at_less_often(looking: float, pause: float) -> None:
    assert pause_after(looking) == pytest.approx(pause)
    assert pause_after(looking) < STALE_SECONDS
    assert looking <= LOOKING_SHARE * pause or pause == STALE_SECONDS / 2
