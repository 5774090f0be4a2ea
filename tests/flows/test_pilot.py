"""A pilot as a flow: its answers, its estimate, its artifact."""

from collections.abc import Callable

import pytest

from blocks import VLLMServer
from flows.pilot import pilot
from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect, lines_of

pytestmark = pytest.mark.usefixtures("prefect_api")
MakeJob = Callable[..., Job]


async def test_it_annotates_a_sample_and_shows_the_estimate_with_samples(
    make_job: MakeJob, stand_in: StandIn, prefect_api: str
) -> None:
    job = make_job(60)
    server = VLLMServer(endpoints=[f"{stand_in.url}/v1"])
    state = await pilot(job.input, job.images, job.output, server, sample=40, return_state=True)
    assert state.is_completed(), state.message
    assert "40 images: 40 answered, 0 failed, 20 not selected" in str(state.message)
    assert "Estimate for the other 20 images" in str(state.message)
    assert len(lines_of(job.folder / "labeled.pilot.jsonl")) == 40
    assert not job.output.exists()
    shown = ask_prefect(prefect_api, "/artifacts/filter", sort="CREATED_DESC", limit=50)
    estimate = next(artifact for artifact in shown if artifact["key"] == "annotate-estimate")
    assert "Estimate for the other 20 images" in estimate["data"]
    assert estimate["data"].count("data:image/") >= 6


async def test_a_server_that_is_gone_fails_it_with_the_reason(make_job: MakeJob, nobody: str) -> None:
    job = make_job(3)
    server = VLLMServer(endpoints=[f"{nobody}/v1"])
    state = await pilot(job.input, job.images, job.output, server, return_state=True)
    assert state.is_failed()
    assert "no vLLM server" in str(state.message)
    folder = job.folder / "no such folder"
    state = await pilot(job.input, job.images, folder / "labeled.jsonl", server, return_state=True)
    assert "does not exist: create it" in str(state.message)
