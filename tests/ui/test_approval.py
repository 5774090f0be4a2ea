"""A run that waits for approval, in the Prefect UI: what a person sees there, and what their answer does."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect, lines_of
from tests.deployed.conftest import Deployed

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.ui
MakeJob = Callable[..., Job]
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("go_on", [True, False], ids=["approved", "refused"])
def test_a_person_approves_or_refuses_the_rest_in_a_form(
    deployed: Deployed, chromium: "Browser", screenshots: Path, make_job: MakeJob, stand_in: StandIn,
    go_on: bool,
) -> None:  # fmt: skip
    if deployed.worker is None:
        deployed.worker = deployed.start_worker("worker-1")
    job = make_job(40)
    paths = {"input": str(job.input), "image_root": str(job.images), "output": str(job.output)}
    server = {"endpoints": [f"{stand_in.url}/v1"]}
    run = deployed.run("annotate-approved/annotate-approved", **paths, server=server, sample=30)
    deployed.wait_for(run, "Paused")
    page = chromium.new_page(viewport={"width": 1300, "height": 1300})
    page.goto(f"{deployed.api.removesuffix('/api')}/runs/flow-run/{run}")
    page.get_by_role("button", name="Resume").first.click()
    page.get_by_text("Annotate the rest?").first.wait_for()
    shown = page.locator("body").inner_text()
    assert "Estimate for the other 10 images, from 30 of this pilot" in shown
    page.screenshot(path=screenshots / "approval.png")
    if not go_on:
        page.get_by_role("switch").first.click()
    page.get_by_role("button", name="Submit").first.click()
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
