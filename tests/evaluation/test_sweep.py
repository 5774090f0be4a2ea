"""What the whole input would take with a variant of a sweep, from the report of its pilot."""

from pathlib import Path

import pytest

from tests.evaluation.scenes import write_rows
from tests.report.test_page import REPORT
from vllm_annotate.evaluation.sweep import Pilot, sweep_figures
from vllm_annotate.report.estimate import Estimate, estimate
from vllm_annotate.report.report import Images, Report

PILOT, START_SECONDS, SECONDS_PER_IMAGE = 200, 600.0, 0.1


def report_of(images: int, found: Estimate | None) -> Report:
    """The report of a pilot of some images of an input of so many."""
    counts = Images(input=images, distinct=PILOT, not_selected=images - PILOT, already_done=0, answered=PILOT, failed=0)
    return REPORT.model_copy(update={"images": counts, "estimate": found})


@pytest.mark.parametrize("images", [210, 400, 100_000])
@pytest.mark.parametrize("gpus", [0, 2])
def test_the_start_of_a_server_counts_once_however_many_images_there_are(
    images: int, gpus: int, tmp_path: Path
) -> None:
    done = [(number * SECONDS_PER_IMAGE, 100, 50) for number in range(1, PILOT + 1)]
    annotating = PILOT * SECONDS_PER_IMAGE
    found = estimate(
        images - PILOT, done, in_flight=1, seconds=START_SECONDS + annotating, annotating_seconds=annotating,
        bytes_per_row=1, gpus=gpus,
    )  # fmt: skip
    rows = [{"image_path": "a", "objects": [{"name": "cat", "bbox": [0, 0, 9, 9]}]}]
    output = write_rows(tmp_path / "a.jsonl", rows)
    figures = sweep_figures([Pilot("a", output, report_of(images, found))], {}, tmp_path / "labeled.jsonl", output)
    (row,) = figures["variants"]
    seconds = START_SECONDS + images * SECONDS_PER_IMAGE
    assert row["hours"]["likely"] == pytest.approx(seconds / 3600, rel=0.01)
    assert row["hours"]["low"] > START_SECONDS / 3600
    if gpus:
        assert row["cost"]["likely"] == pytest.approx(gpus * seconds / 3600, rel=0.01)
