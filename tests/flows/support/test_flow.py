"""This project's flows are Prefect's, and run where no Prefect server is configured."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import prefect
import pytest
from prefect.flows import load_flow_arguments_from_entrypoint, load_flow_from_entrypoint
from prefect.settings import PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK, temporary_settings

from stand_in.process import StandIn
from tests.conftest import ROOT, Job
from tests.flows.test_annotate import annotate

MakeJob = Callable[..., Job]
SCRIPT = """
import asyncio, sys
from blocks import VLLMServer
from flows.annotate import annotate_images

async def main(input, images, output, url):
    server = VLLMServer(endpoints=[url + "/v1"])
    for chunk_size in (1, 2):  # the second finds the server of the first
        state = await annotate_images(input, images, output, server, chunk_size=chunk_size, return_state=True)
        print(state.message)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.long
def test_a_script_without_a_prefect_server_runs_quietly_and_is_recorded(
    make_job: MakeJob, stand_in: StandIn, tmp_path: Path
) -> None:
    job, home = make_job(12), tmp_path / "home"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DO_NOT"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, (job.input, job.images, job.output)), stand_in.url],
        env=plain | {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, text=True, capture_output=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "12 images: 12 answered, 0 failed"
    assert second == "12 images: 0 answered, 12 already answered, 0 failed"
    for loud in ("Traceback", "database is locked", "telemetry", "temporary server"):
        assert loud not in done.stderr
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        states = database.execute("select state_name, count(*) from task_run group by state_name").fetchall()
        assert states == [("Completed", 12 + 2 * 4)]
        assert database.execute("select state_name from flow_run").fetchall() == [("Completed",)] * 2
    leftovers = subprocess.run(["pgrep", "-f", str(home)], capture_output=True, text=True, check=False)
    assert leftovers.stdout == ""


@pytest.mark.parametrize(
    ("entrypoint", "name"),
    [
        ("flows/annotate.py:annotate_images", "annotate-images"),
        ("flows/annotate_sharded.py:annotate_sharded", "annotate-sharded"),
        ("flows/pilot.py:pilot", "pilot"),
        ("flows/annotate_approved.py:annotate_approved", "annotate-approved"),
        ("flows/retry.py:retry_failures", "retry-failures"),
        ("flows/export_report.py:export_report", "export-report"),
        ("flows/serve.py:serve", "serve"),
        ("flows/serve.py:stop_server", "stop-server"),
    ],
)
def test_prefect_loads_the_flows_as_its_own(entrypoint: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    flow: prefect.Flow[..., object] = load_flow_from_entrypoint(entrypoint)
    assert isinstance(flow, prefect.Flow)
    assert (flow.name, flow.persist_result, flow.isasync) == (name, False, True)
    assert load_flow_arguments_from_entrypoint(entrypoint)["name"] == name


@pytest.mark.usefixtures("prefect_api")
async def test_a_default_result_storage_that_is_elsewhere_does_not_stop_a_run(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    with temporary_settings({PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK: "s3-bucket/nowhere"}):
        state = await annotate(make_job(2), stand_in)
    assert state.message == "2 images: 2 answered, 0 failed"
