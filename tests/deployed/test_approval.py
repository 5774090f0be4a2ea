"""A run that waits for a person: approved, refused, or not answered in time."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect, lines_of
from tests.deployed.conftest import Deployed

MakeJob = Callable[..., Job]
Parameters = Callable[..., dict[str, Any]]
APPROVED = "annotate-approved/annotate-approved"
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")

pytestmark = [pytest.mark.deployed, pytest.mark.usefixtures("worker")]


def answer(deployed: Deployed, run: str, **form: Any) -> None:
    deployed.wait_for(run, "Paused")
    path = f"/flow_runs/{run}/resume"
    while (done := ask_prefect(deployed.api, path, run_input=form)).get("status") != "ACCEPT":
        assert "schema" in str(done), done  # the form is saved just after the state
        time.sleep(0.3)


def test_an_approved_run_starts_annotate_which_takes_the_answers_of_the_pilot(
    deployed: Deployed, make_job: MakeJob, parameters: Parameters, stand_in: StandIn
) -> None:
    job = make_job(50)
    stand_in.forget()
    run = deployed.run(APPROVED, **parameters(job, stand_in.url, sample=30))
    deployed.wait_for(run, "Paused")
    assert len(stand_in.images()) == 30
    answer(deployed, run, go_on=True, limit=0, max_concurrency=3)
    state = deployed.wait_for(run, *ENDED)
    assert state["name"] == "Completed", state
    named = ask_prefect(deployed.api, "/flow_runs/filter", flow_runs={"name": {"like_": ", approved"}})
    whole = next(one["id"] for one in named if one["parameters"]["output"] == str(job.output))
    assert "50 images: 50 answered (30 of them by the pilot)" in deployed.wait_for(whole, *ENDED)["message"]
    assert len(lines_of(job.output)) == 50
    assert sum(stand_in.images().values()) == 50


@pytest.mark.parametrize("how", ["refused", "timed out"])
def test_a_refused_run_and_one_that_nobody_answers_end_cancelled_and_ask_nothing(
    deployed: Deployed, make_job: MakeJob, parameters: Parameters, stand_in: StandIn, how: str
) -> None:
    job = make_job(40)
    hours = 168 if how == "refused" else 0.001
    run = deployed.run(APPROVED, **parameters(job, stand_in.url, sample=30, approval_timeout_hours=hours))
    if how == "refused":
        answer(deployed, run, go_on=False)
    state = deployed.wait_for(run, *ENDED)
    assert state["name"] == "Cancelled", state
    assert "nothing more was asked" in state["message"]
    assert not job.output.exists()
