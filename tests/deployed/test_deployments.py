"""What people do with the deployments: run them, watch them, retry, schedule and cancel them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint

from stand_in.process import StandIn
from tests.conftest import ROOT, Job, ask_prefect, lines_of, read_prefect
from tests.deployed.conftest import ON_BOTH_DATABASES, Deployed

MakeJob = Callable[..., Job]
Parameters = Callable[..., dict[str, Any]]
DEPLOYMENTS = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: str(deployment["name"]))
def test_every_entrypoint_loads_and_its_form_explains_itself(deployment: dict[str, Any]) -> None:
    flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert flow.name in (deployment["name"], "annotate-images")
    properties = flow.parameters.properties
    assert properties
    assert all(each.get("description") for each in properties.values()), "the text beside each field in the UI's form"


pytestmark = pytest.mark.deployed


@pytest.mark.usefixtures("worker")
def test_watching_a_run_exits_with_its_outcome(
    deployed: Deployed, make_job: MakeJob, stand_in: StandIn, parameters: Parameters
) -> None:
    job = make_job(12)
    command = ["deployment", "run", "annotate-images/annotate", "--watch", "--params"]
    ran = deployed.prefect(*command, json.dumps(parameters(job, stand_in.url)))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(lines_of(job.output)) == 12
    stand_in.set_faults({"kind": "crash"})
    other = make_job(8, folder=job.folder / "other")
    more = {"server_wait_seconds": 1, "chunk_retries": 0}
    ran = deployed.prefect(*command, json.dumps(parameters(other, stand_in.url, **more)))
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "Flow run finished in state 'Failed'" in ran.stdout


@pytest.mark.usefixtures("worker")
def test_a_saved_block_is_referenced_by_its_name(
    deployed: Deployed, make_job: MakeJob, stand_in: StandIn, parameters: Parameters
) -> None:
    code = f"from blocks import VLLMServer; VLLMServer(endpoints=['{stand_in.url}/v1']).save('mine', overwrite=True)"
    subprocess.run([sys.executable, "-c", code], env=deployed.environment, check=True, cwd=ROOT)
    job = make_job(3)
    of_blocks = {
        "server": {"$ref": {"block_document_slug": "vllm-server/mine"}},  # the UI's list sends the block's id instead
        "recipe": {"$ref": {"block_document_slug": "annotation-recipe/chinese"}},
    }
    run = deployed.run("annotate-images/annotate", **(parameters(job, stand_in.url) | of_blocks))
    assert deployed.wait_for(run, "Completed", "Failed", "Crashed")["name"] == "Completed"
    assert "从左到右" in lines_of(job.output)[0]["annotations"]["rationale"]


@pytest.mark.usefixtures("worker")
def test_a_retry_of_the_run_requests_only_what_its_failed_chunks_lack_and_a_new_run_nothing(
    deployed: Deployed, make_job: MakeJob, stand_in: StandIn, parameters: Parameters
) -> None:
    job = make_job(30)
    stand_in.set_faults({"kind": "crash", "match": "caption of 0025"})
    more = {"chunk_size": 10, "server_wait_seconds": 1, "chunk_retries": 0, "max_concurrency": 1}
    run = deployed.run("annotate-images/annotate", **parameters(job, stand_in.url, **more))
    assert "chunk 3 of 3" in deployed.wait_for(run, "Failed", "Completed", "Crashed")["message"]
    stand_in.start()
    ask_prefect(deployed.api, f"/flow_runs/{run}/set_state", state={"type": "SCHEDULED", "name": "AwaitingRetry"})
    assert deployed.wait_for(run, "Completed", "Failed", "Crashed")["name"] == "Completed"
    assert sorted(stand_in.asked()) == [f"caption of {name}" for name in job.names[25:]]
    stand_in.forget()
    new = deployed.run("annotate-images/annotate", **parameters(job, stand_in.url, **more))
    assert deployed.wait_for(new, "Completed", "Failed", "Crashed")["name"] == "Completed"
    assert stand_in.asked() == {}
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


@ON_BOTH_DATABASES
@pytest.mark.usefixtures("worker")
def test_a_schedule_fires(deployed: Deployed, make_job: MakeJob, stand_in: StandIn, parameters: Parameters) -> None:
    job = make_job(3)
    deployment = read_prefect(deployed.api, "/deployments/name/annotate-images/annotate")["id"]
    soon = datetime.now(UTC) + timedelta(seconds=15)
    interval = {"interval": 86400, "anchor_date": soon.isoformat(), "timezone": "UTC"}
    schedule = {"schedule": interval, "active": True, "parameters": parameters(job, stand_in.url)}
    ask_prefect(deployed.api, f"/deployments/{deployment}/schedules", schedule)
    deadline = time.monotonic() + 200
    while not (runs := deployed.runs_of(job.output)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    # Let it finish: killed with its worker, it would hold the deployment's only slot until its heartbeat is missed.
    assert deployed.wait_for(runs[0], "Completed", "Failed", "Crashed", seconds=200)["name"] == "Completed"
    assert len(lines_of(job.output)) == 3


@ON_BOTH_DATABASES
@pytest.mark.usefixtures("worker")
def test_the_second_of_two_runs_waits_for_the_first(
    deployed: Deployed, make_job: MakeJob, parameters: Parameters
) -> None:
    with StandIn.started("--prefill-seconds", "0.5") as server:
        jobs = [make_job(20, folder=Path(str(deployed.folder / f"queued-{number}"))) for number in range(2)]
        runs = [
            deployed.run("annotate-images/annotate", **parameters(job, server.url, max_concurrency=2)) for job in jobs
        ]
        begun = {deployed.wait_for(run, "Running", "AwaitingConcurrencySlot")["name"]: run for run in runs}
        assert len(begun) == 2
        for run in runs:
            assert deployed.wait_for(run, "Completed", "Failed", "Crashed", "Cancelled")["name"] == "Completed"
    assert all(len(lines_of(job.output)) == 20 for job in jobs)


@pytest.mark.usefixtures("worker")
def test_a_cancelled_run_stops_within_seconds_and_keeps_its_answers(
    deployed: Deployed, make_job: MakeJob, parameters: Parameters
) -> None:
    with StandIn.started("--canned", "--prefill-seconds", "0.3") as server:
        job = make_job(400)
        run = deployed.run("annotate-images/annotate", **parameters(job, server.url, max_concurrency=4))
        while len(server.asked() if server.answers() else ()) < 20:
            time.sleep(0.2)
        ask_prefect(deployed.api, f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
        deployed.wait_for(run, "Cancelled", seconds=60)
        time.sleep(2)
        asked = len(server.asked())
        time.sleep(3)
        assert len(server.asked()) == asked < 400
        server.forget()
        again = deployed.run("annotate-images/annotate", **parameters(job, server.url, max_concurrency=32))
        assert deployed.wait_for(again, "Completed", "Failed", "Crashed")["name"] == "Completed"
        assert len(server.asked()) <= 400 - asked + 4, "only what was in flight is asked twice"
    assert [row["image_path"] for row in lines_of(job.output)] == job.names
