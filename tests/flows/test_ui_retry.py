"""The UI's Retry of a failed run: a served deployment, and the API calls that the UI makes."""

import json
import platform
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stand_in.process import StandIn
from tests.conftest import ROOT, Job, ask_prefect, lines_of

SERVE = "from flows.annotate import annotate_images; annotate_images.serve(name='retried', pause_on_shutdown=False)"


@pytest.fixture
def deployment(prefect_api: str) -> Iterator[str]:
    """The id of a deployment that a separate process serves."""
    process = subprocess.Popen([sys.executable, "-c", SERVE], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        named = {"name": {"any_": ["retried"]}}
        while not (found := ask_prefect(prefect_api, "/deployments/filter", deployments=named)):
            assert time.monotonic() < deadline, "the deployment was not served"
            time.sleep(0.2)
        yield str(found[0]["id"])
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(api: str, run_id: str, *states: str) -> dict[str, Any]:
    """Waits until the flow run is in one of these states."""
    deadline = time.monotonic() + 90
    while True:
        with urllib.request.urlopen(f"{api}/flow_runs/{run_id}") as response:
            run: dict[str, Any] = json.load(response)
        if run["state_name"] in states:
            return run
        assert time.monotonic() < deadline, f"{run['state_name']}: {run['state']['message']}"
        time.sleep(0.2)


def task_states(api: str, run_id: str) -> set[tuple[str, str]]:
    """Names of the run's tasks and of their last states, which travel as events: later than the run's own."""
    tasks = ask_prefect(api, "/task_runs/filter", flow_runs={"id": {"any_": [run_id]}})
    return {(task["name"], task["state_name"]) for task in tasks}


def test_the_uis_retry_runs_the_failed_chunk_and_takes_the_others_from_the_cache(
    make_job: Callable[..., Job], stand_in: StandIn, deployment: str, prefect_api: str
) -> None:
    job = make_job(40)
    stand_in.set_faults({"kind": "400", "count": None, "match": "001[5-9]"})
    parameters = {
        "input": str(job.input), "image_root": str(job.images), "output": str(job.output), "chunk_size": 10,
        "max_concurrency": 1, "error_budget": 0, "server": {"endpoints": [f"{stand_in.url}/v1"]},
    }  # fmt: skip
    run_id = ask_prefect(prefect_api, f"/deployments/{deployment}/create_flow_run", parameters=parameters)["id"]
    run = wait_for(prefect_api, run_id, "Failed", "Completed", "Crashed")
    assert run["state_name"] == "Failed"
    assert run["name"] == f"annotate labeled.jsonl, on {platform.node()}"
    assert "failed chunks: chunk 2 of 4" in run["state"]["message"]
    answered = {row["image_path"] for row in lines_of(job.output)}
    stand_in.set_faults()
    stand_in.forget()
    retry = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    ask_prefect(prefect_api, f"/flow_runs/{run_id}/set_state", state=retry, force=True)
    run = wait_for(prefect_api, run_id, "Completed")
    assert run["run_count"] == 2
    assert {text.removeprefix("caption of ") for text in stand_in.asked()} == set(job.names) - answered
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names
    deadline = time.monotonic() + 30
    while not {("chunk 1 of 4", "Cached"), ("chunk 2 of 4", "Completed")} <= (told := task_states(prefect_api, run_id)):
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
