"""A run that waits for approval, in Prefect's two UIs: what a person sees there, and what their answer does."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect, lines_of
from tests.deployed.conftest import Deployed
from tests.ui.conftest import send

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.ui
MakeJob = Callable[..., Job]
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")
UIS = {"v1": "", "v2": "/v2"}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("go_on", [True, False], ids=["approved", "refused"])
@pytest.mark.parametrize("ui", UIS)
def test_a_person_approves_or_refuses_the_rest_in_a_form(
    deployed: Deployed, chromium: "Browser", screenshots: Path, make_job: MakeJob, stand_in: StandIn, ui: str,
    go_on: bool,
) -> None:  # fmt: skip
    job = make_job(40)
    run = begun(deployed, job, stand_in)
    deployed.wait_for(run, "Paused")
    page = chromium.new_page(viewport={"width": 1300, "height": 1300})
    open_form(page, deployed, run, ui)
    page.get_by_text("Annotate the rest?").first.wait_for()
    page.get_by_text("Estimate for the other 10 images, from 30 of this pilot").first.wait_for()
    page.screenshot(path=screenshots / f"approval{UIS[ui].replace('/', '-')}.png")
    page.get_by_role("switch", checked=True).first.wait_for()  # what an untouched form shows, it sends
    if not go_on:
        page.get_by_role("switch").first.click()
    send(page, page.get_by_role("button", name="Submit" if ui == "v1" else "Resume").last, "/resume")
    state = deployed.wait_for(run, *ENDED)
    page.close()
    if go_on:
        assert state["name"] == "Completed", state
        named = ask_prefect(deployed.api, "/flow_runs/filter", flow_runs={"name": {"like_": ", approved"}})
        whole = next(one["id"] for one in named if one["parameters"]["output"] == str(job.output))
        assert deployed.wait_for(whole, *ENDED)["name"] == "Completed"
        assert len(lines_of(job.output)) == 40
    else:
        assert (state["name"], state["message"]) == ("Cancelled", "refused: nothing more was asked")
        assert not job.output.exists()


@pytest.mark.timeout(200)
def test_a_run_that_nobody_answers_in_time_is_shown_as_cancelled_and_asked_nothing(
    deployed: Deployed, chromium: "Browser", make_job: MakeJob, stand_in: StandIn
) -> None:
    stand_in.forget()
    job = make_job(40)
    run = begun(deployed, job, stand_in, approval_timeout_hours=0.001)
    assert deployed.wait_for(run, *ENDED)["name"] == "Cancelled"
    for prefix in UIS.values():
        page = chromium.new_page(viewport={"width": 1300, "height": 1300})
        page.goto(address(deployed, run, prefix))
        page.get_by_text("Cancelled", exact=True).first.wait_for()
        assert page.get_by_role("button", name="Resume").count() == 0
        page.close()
    assert sum(stand_in.images().values()) == 30, "the pilot's"
    assert not job.output.exists()


def begun(deployed: Deployed, job: Job, server: StandIn, **more: Any) -> str:
    """A run of annotate-approved with a pilot of 30 images, on the worker of these tests."""
    if deployed.worker is None:
        deployed.worker = deployed.start_worker("worker-1")
    paths = {"input": str(job.input), "image_root": str(job.images), "output": str(job.output)}
    endpoints = {"endpoints": [f"{server.url}/v1"]}
    return deployed.run("annotate-approved/annotate-approved", **paths, server=endpoints, sample=30, **more)


def address(deployed: Deployed, run: str, prefix: str) -> str:
    return f"{deployed.api.removesuffix('/api')}{prefix}/runs/flow-run/{run}"


def open_form(page: "Page", deployed: Deployed, run: str, ui: str) -> None:
    """Opens the form of a run that waits: a button in the first UI, an entry of the menu in the second."""
    page.goto(address(deployed, run, UIS[ui]))
    if ui == "v1":
        page.get_by_role("button", name="Resume").first.click()
    else:
        page.get_by_role("button", name="Open menu").first.click()
        page.get_by_role("menuitem", name="Resume").click()
