"""A run without news keeps the figures of the output, and of the last run that did something."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stand_in.process import StandIn
from tests.conftest import ROOT, Job
from tests.report.test_page import REPORT
from vllm_annotate.report.whole import with_whole
from vllm_annotate.results.files import Files
from vllm_annotate.storage.workspace import Workspace

PROGRAM = "from vllm_annotate.cli.start import start; start()"


def annotate(job: Job, server: StandIn, *options: str) -> tuple[dict[str, Any], str]:
    """Runs the job; returns its report and its page."""
    arguments = ["annotate", *job.arguments(server.url), "--without-prefect", *options]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(job.folder.joinpath("labeled.report.json").read_text())
    return report, job.folder.joinpath("labeled.report.html").read_text()


def test_a_run_without_news_keeps_the_figures_of_the_last_run(make_job: Callable[..., Job]) -> None:
    job = make_job(12)
    with StandIn.started("--prefill-seconds", "0.6") as server:
        first, first_page = annotate(job, server, "--max-concurrency", "2")
        second, _ = annotate(job, server)
        third, third_page = annotate(job, server)
    assert "last_run" not in first
    assert first["output"]["images"] == 12
    assert first["output"]["quality"] == first["quality"]
    for later in (second, third):
        assert (later["images"]["answered"], later["images"]["already_done"]) == (0, 12), "its own counts"
        assert later["output"] == first["output"]
        last = later["last_run"]
        for name in ("images", "images_per_second", "tokens", "bottleneck", "telemetry", "servers", "proof", "started"):
            assert last[name] == first[name], name
        assert "last_run" not in last, "no chain of runs"
    assert first_page.count("<svg") == third_page.count("<svg")
    titles = r'font-weight="600"[^>]*>([^<]*)</text>'
    assert re.findall(titles, first_page) == re.findall(titles, third_page) != [], "the charts of the first run"
    assert re.search(r"The run of [-0-9]{10} [0-9:]{5} UTC had nothing to do", third_page)


def test_a_run_with_news_counts_the_whole_output(make_job: Callable[..., Job], stand_in: StandIn) -> None:
    job = make_job(8)
    job.write_input(job.rows()[:6])
    annotate(job, stand_in)
    job.write_input(job.rows())
    report, page = annotate(job, stand_in)
    assert report["quality"]["answers"] == 2
    assert report["output"]["quality"]["answers"] == report["output"]["images"] == 8
    assert "last_run" not in report
    assert "<b>8</b>" in page


def test_a_damaged_report_is_replaced(make_job: Callable[..., Job], stand_in: StandIn) -> None:
    job = make_job(2)
    annotate(job, stand_in)
    job.folder.joinpath("labeled.report.json").write_text('{"images": 5}')
    report, _ = annotate(job, stand_in)
    assert report["output"]["images"] == 2
    assert "last_run" not in report


def test_a_large_output_is_sampled_all_over(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(120_000):
            name = "late" if number > 100_000 else "early"
            file.write(json.dumps({"image_path": f"{number}", "objects": [{"name": name, "bbox": [1, 2, 300, 400]}],
                                   "vlm_output": "x" * 700}) + "\n")  # fmt: skip
    whole = with_whole(REPORT, Files(Workspace(path))).output
    assert whole is not None
    counts = whole.quality["names"]
    assert whole.images == 120_000
    assert 0.1 < counts["late"] / (counts["late"] + counts["early"]) < 0.25


def test_a_missing_output_has_no_quality(tmp_path: Path) -> None:
    whole = with_whole(REPORT, Files(Workspace(tmp_path / "none.jsonl"))).output
    assert whole is not None
    assert (whole.images, whole.quality["answers"]) == (0, 0)
