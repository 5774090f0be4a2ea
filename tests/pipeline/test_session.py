"""Opening a run."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stand_in.process import StandIn
from tests.conftest import ROOT, Job, lines_of
from vllm_annotate.inputs.plan_file import Chunk, Counts, Plan, chunk_length
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
    assert warnings == []
    assert allowed_concurrency(513, 1024, warnings.append) == 512
    assert len(warnings) == 1


def test_a_plan_that_is_resumed_with_another_chunk_size_keeps_its_own_and_says_so(make_job: Callable[..., Job]) -> None:
    job = make_job(60, distinct=5)
    with StandIn.started("--canned", "--prefill-seconds", "0.1") as server:
        options = ("--without-prefect", "--max-concurrency", "2")
        first = job.start(server.url, *options, "--chunk-size", "20")
        deadline = time.monotonic() + 60
        while sum(server.asked().values()) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.kill()
        first.communicate()
        again = job.run(server.url, *options, "--chunk-size", "7")
    assert again.returncode == 0, again.stderr
    assert "Chunks have 20 images, not chunk_size=7: a plan keeps its chunks until all are complete" in again.stderr
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


@pytest.mark.parametrize(
    ("lengths", "chunk_size", "other"),
    [([5, 5, 2], 5, None), ([5, 5, 2], 6, 5), ([5, 5, 2], 4, 5), ([3], 5, None), ([3], 2, 3), ([], 5, None)],
)
def test_another_chunk_size_is_noticed_where_it_shows(lengths: list[int], chunk_size: int, other: int | None) -> None:
    plan = Plan(Counts(), [Chunk(number, 0, length, "") for number, length in enumerate(lengths, start=1)])
    assert plan.other_chunk_size(chunk_size) == other


@given(st.integers(0, 200_000_000), st.integers(1, 100_000))
def test_chunks_grow_with_the_input_as_far_as_memory_allows(images: int, chunk_size: int) -> None:
    length = chunk_length(images, chunk_size)
    assert length >= chunk_size
    if images <= 2_000 * chunk_size:
        assert length == chunk_size
    else:
        assert length <= max(chunk_size, 20_000)
    assert images / length <= 2_000 or length >= 20_000


def test_a_plan_of_a_large_input_has_the_chunks_that_were_wanted() -> None:
    plan = Plan(Counts(), [Chunk(number, 0, 600, "") for number in range(1, 2001)])
    assert plan.other_chunk_size(500) is None
    assert plan.other_chunk_size(700) == 600
