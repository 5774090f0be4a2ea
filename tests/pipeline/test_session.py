"""Opening a run."""

import resource
import subprocess
import sys
from collections.abc import Callable

from stand_in.process import StandIn
from tests.conftest import ROOT, Job, lines_of
from vllm_annotate.pipeline.session import allowed_concurrency

FEW = 96


def test_requests_in_flight_are_as_many_as_the_limit_of_open_files_allows(
    make_job: Callable[..., Job], stand_in: StandIn
) -> None:
    job = make_job(120, distinct=5)
    command = [sys.executable, "-m", "flows.annotate", *job.arguments(stand_in.url, "--without-prefect")]
    done = subprocess.run(
        [*command, "--max-concurrency", "90"], cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FEW // 2, FEW)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "max_concurrency is 48, not 90: this process may open 96 files" in done.stderr
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


def test_a_limit_of_requests_that_the_limit_of_open_files_allows_stays() -> None:
    warnings: list[str] = []
    assert allowed_concurrency(512, 1024, warnings.append) == 512
    assert allowed_concurrency("auto", 64, warnings.append) == "auto"
    assert warnings == []
    assert allowed_concurrency(513, 1024, warnings.append) == 512
    assert len(warnings) == 1
