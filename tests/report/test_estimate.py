"""What the rest of an input will take."""

import random

import pytest

from vllm_annotate.report.estimate import estimate, seconds_per_image


def run_of(images: int, seed: int, *, slots: int = 16, mean_seconds: float = 2.0) -> list[tuple[float, int, int]]:
    """A server with slots that are filled one after the other in its first seconds; the last are emptied."""
    rng = random.Random(seed)
    free = sorted(rng.uniform(0, 2) for _ in range(slots))
    done = []
    for _ in range(images):
        at = free.pop(0)
        tokens = rng.randint(50, 150)
        free.append(at + mean_seconds * tokens / 100)
        free.sort()
        done.append((at + mean_seconds * tokens / 100, 1000, tokens))
    return sorted(done)


def test_the_range_holds_the_true_time_and_tokens_in_nearly_all_runs() -> None:
    hits = token_hits = 0
    for seed in range(40):
        pilot, whole = run_of(200, seed), run_of(20_000, 1000 + seed)
        seconds = pilot[-1][0]
        found = estimate(
            20_000, pilot, in_flight=16, seconds=seconds + 5, annotating_seconds=seconds, bytes_per_row=1500
        )
        assert found is not None
        hits += found.hours.low <= (whole[-1][0] + 5) / 3600 <= found.hours.high
        token_hits += (
            found.completion_tokens.low <= sum(tokens for _, _, tokens in whole) <= found.completion_tokens.high
        )
        assert found.hours.high / found.hours.low < 2
    assert hits >= 38
    assert token_hits >= 36


def test_the_steady_part_leaves_out_filling_and_emptying_the_server() -> None:
    slow_start = [0.5 * number for number in range(40)]
    steady = [20 + 0.1 * number for number in range(1, 201)]
    emptying = [40 + 1.0 * number for number in range(1, 21)]
    each, error = seconds_per_image([*slow_start, *steady, *emptying], in_flight=20)
    assert each == pytest.approx(0.1, rel=0.01)
    assert error < 0.05


@pytest.mark.parametrize("count", [30, 31, 37, 60])
@pytest.mark.parametrize("in_flight", [1, 16, 500])
def test_small_runs_have_wide_ranges_and_no_errors(count: int, in_flight: int) -> None:
    found = estimate(
        1000, run_of(count, 1), in_flight=in_flight, seconds=9, annotating_seconds=8, bytes_per_row=10.5, gpus=2
    )
    assert found is not None
    assert found.hours.low < found.hours.likely < found.hours.high
    assert found.gpu_hours is not None
    assert found.gpu_hours.likely == pytest.approx(2 * found.hours.likely)
    assert found.kwh is None


def test_answers_that_all_came_at_once_are_no_error() -> None:
    assert estimate(10, [(5.0, 1, 0)] * 40, in_flight=4, seconds=1, annotating_seconds=1, bytes_per_row=0) is not None


def test_too_few_images_and_nothing_left_have_no_estimate() -> None:
    few = run_of(29, 1)
    assert estimate(1000, few, in_flight=1, seconds=9, annotating_seconds=8, bytes_per_row=1) is None
    assert estimate(0, run_of(99, 1), in_flight=1, seconds=9, annotating_seconds=8, bytes_per_row=1) is None


def test_the_words_say_each_figure_with_its_range() -> None:
    found = estimate(
        3_000_000, run_of(200, 1), in_flight=16, seconds=30, annotating_seconds=28, bytes_per_row=1500, gpus=3,
        watts=900,
    )  # fmt: skip
    assert found is not None
    lines = found.sentences()
    assert [line.split()[0] for line in lines] == ["time", "GPU", "energy", "prompts", "answers", "disk"]
    assert "3,000 million (3,000 million to 3,000 million) tokens" in lines[3]
    assert lines[5].startswith("disk      4.2 (")
    assert lines[5].endswith("GiB")
