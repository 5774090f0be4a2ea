"""Sampling once a second."""

import pytest

from vllm_annotate.inference.endpoint import HEALTH_TIMEOUT_SECONDS
from vllm_annotate.pipeline.recording import STALE_SECONDS, pause_after


@pytest.mark.parametrize(("looking", "pause"), [(0.0, 1.0), (0.01, 1.0), (0.03, 1.5), (5.0, 2.0)])
def test_a_slow_server_is_sampled_less_often(looking: float, pause: float) -> None:
    assert pause_after(looking) == pytest.approx(pause)
    assert pause_after(looking) + HEALTH_TIMEOUT_SECONDS < STALE_SECONDS
