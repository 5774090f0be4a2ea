"""Secrets that were written into the parameters of a run."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect
from tests.deployed.conftest import Deployed

KEY, TOKEN = "sk-4bTq9LxWv2RzNe7Y", "hf_Zt6yUi0oPb4VnMx"

pytestmark = pytest.mark.deployed


def shown(deployed: Deployed) -> str:
    """What Prefect shows of runs, and the worker's log."""
    found = [ask_prefect(deployed.api, f"/{what}/filter", limit=200) for what in ("flow_runs", "logs", "artifacts")]
    return json.dumps(found) + (deployed.folder / "worker-1.log").read_text()


@pytest.mark.usefixtures("worker")
def test_a_key_among_the_parameters_of_a_run_is_used_and_taken_out(
    make_job: Callable[..., Job], deployed: Deployed, parameters: Callable[..., dict[str, Any]]
) -> None:
    job = make_job(3)
    with StandIn.started("--api-key", KEY) as server:
        own = {"endpoints": [f"{server.url}/v1"], "api_key": KEY}
        run = deployed.run("annotate-images/annotate", **parameters(job, server.url, server=own, chunk_size=2))
        state = deployed.wait_for(run, "Completed", "Failed", "Crashed")
    assert state["name"] == "Completed", state
    (record,) = ask_prefect(deployed.api, "/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
    assert record["parameters"]["server"] == {"endpoints": own["endpoints"]}
    assert record["parameters"]["chunk_size"] == 2
    text = shown(deployed)
    assert KEY not in text
    assert "Prefect showed secrets among this run's parameters (server: api_key); they are taken out now" in text


@pytest.mark.usefixtures("worker")
def test_a_token_among_the_parameters_of_a_run_is_taken_out_and_named(deployed: Deployed) -> None:
    start = {"model_path": "/nowhere/m", "environment": {"HF_TOKEN": TOKEN, "NCCL_P2P_DISABLE": "1"}}
    for deployment in ("serve/serve", "stop-server/stop-server"):
        run = deployed.run(deployment, server={"start": start})
        deployed.wait_for(run, "Completed", "Failed", "Crashed")
        (record,) = ask_prefect(deployed.api, "/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        assert record["parameters"]["server"]["start"] == {
            "model_path": "/nowhere/m", "environment": {"NCCL_P2P_DISABLE": "1"}, "environment_from": ["HF_TOKEN"],
        }  # fmt: skip
    assert TOKEN not in shown(deployed)
