"""What becomes of a run when Prefect's API does not answer any more: its answers do not depend on it."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import prefect
import pytest

from flows.support.prefect_server import TemporaryPrefectServer
from stand_in.ports import free_port
from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.support.canned_http import canned_http

MakeJob = Callable[..., Job]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[TemporaryPrefectServer]:
    """A Prefect server of this test's own, which may kill it."""
    server = TemporaryPrefectServer({"PREFECT_HOME": str(tmp_path / "server")}, free_port())
    server.wait_until_ready()
    yield server
    server.given_up.set()
    server.stop()


@pytest.mark.long
@pytest.mark.parametrize("ending", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.prove)])
def test_a_run_whose_prefect_server_is_gone_ends_soon_and_by_what_its_data_says(
    ending: signal.Signals, make_job: MakeJob, api: TemporaryPrefectServer, tmp_path: Path
) -> None:
    job = make_job(12)
    with StandIn.started("--prefill-seconds", "1") as vllm:
        process = job.start(
            vllm.url, "--max-concurrency", "2", "--chunk-size", "4",
            PREFECT_API_URL=api.api_url, PREFECT_HOME=str(tmp_path / "client"),
        )  # fmt: skip
        try:
            while len(vllm.asked()) < 4:
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
            os.kill(api.pid, ending)
            while len(lines_of(job.output)) < 12:
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
            began = time.monotonic()
            _, said = process.communicate(timeout=120)
        finally:
            os.kill(api.pid, signal.SIGCONT)
            process.kill()
    assert process.returncode == 0, said
    assert time.monotonic() - began < 110
    assert "Traceback" not in said
    assert "12 images: 12 answered, 0 failed" in said
    assert "its record of this run is incomplete; the files of the run are whole" in said
    assert "events" not in said
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


def test_a_run_that_prefect_cannot_begin_is_refused_in_a_line(
    make_job: MakeJob, stand_in: StandIn, tmp_path: Path
) -> None:
    job = make_job(2)
    with canned_http(200, json.dumps(prefect.__version__).encode()) as (url, _):  # an API that has no more than that
        done = job.run(stand_in.url, PREFECT_API_URL=f"{url}/api", PREFECT_HOME=str(tmp_path / "client"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: Prefect failed before the run came to its end (" in done.stderr
    assert "answers so far are saved" in done.stderr
    assert not job.output.exists()
