"""The artifacts of a run, as the Prefect API has them while it runs and afterwards."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect
from tests.flows.test_annotate import annotate

MakeJob = Callable[..., Job]
KEYS = [f"annotate-{what}" for what in ("bottleneck", "failures", "gpus", "progress", "proof", "samples", "summary")]


def latest_run(api: str) -> str:
    """The id of the flow run that began last; empty before the first."""
    runs = ask_prefect(api, "/flow_runs/filter", sort="START_TIME_DESC", limit=1)
    return str(runs[0]["id"]) if runs else ""


def artifacts_of(api: str, run: str) -> dict[str, dict[str, Any]]:
    of_it = {"artifacts": {"flow_run_id": {"any_": [run]}}}
    return {artifact["key"]: artifact for artifact in ask_prefect(api, "/artifacts/filter", **of_it)}


@pytest.fixture
def slow() -> Any:
    with StandIn.started("--canned", "--slots", "4", "--prefill-seconds", "0.4") as server:
        yield server


async def test_artifacts_update_under_the_same_keys_and_end_with_the_final_state(
    make_job: MakeJob, slow: StandIn, prefect_api: str
) -> None:
    job = make_job(90)
    (job.images / job.names[3]).unlink()
    earlier = run = latest_run(prefect_api)
    running = asyncio.create_task(annotate(job, slow, max_concurrency=8))
    live: dict[str, dict[str, Any]] = {}
    while run == earlier or sorted(live) != KEYS:
        assert not running.done()
        await asyncio.sleep(0.2)
        run = await asyncio.to_thread(latest_run, prefect_api)
        live = await asyncio.to_thread(artifacts_of, prefect_api, run) if run else {}
    await running
    final = artifacts_of(prefect_api, run)
    assert sorted(live) == sorted(final) == KEYS
    assert [live[key]["id"] for key in KEYS] == [final[key]["id"] for key in KEYS]
    assert 0 < float(live["annotate-progress"]["data"]) < 90
    assert float(final["annotate-progress"]["data"]) == 100
    assert "Time left" in live["annotate-summary"]["data"]
    assert "| Answered | 89 |" in final["annotate-summary"]["data"]
    assert "stand-in, not from a model" in final["annotate-summary"]["data"]
    assert "0003" in final["annotate-failures"]["data"]
    assert "cannot read NVIDIA GPUs on this machine" in final["annotate-gpus"]["data"]
    assert final["annotate-gpus"]["data"].count("data:image/svg+xml;base64,") == 4
    assert "What to do" in final["annotate-bottleneck"]["data"]
    assert "its boxes are proven" in final["annotate-proof"]["data"]
    assert len(re.findall(r"!\[boxes\]", final["annotate-samples"]["data"])) == 6


async def test_a_resumed_run_reports_what_it_skipped_and_still_shows_images(
    make_job: MakeJob, stand_in: StandIn, prefect_api: str
) -> None:
    job = make_job(5)
    await annotate(job, stand_in)
    await annotate(job, stand_in)
    artifacts = artifacts_of(prefect_api, latest_run(prefect_api))
    assert "| Already answered | 5 |" in artifacts["annotate-summary"]["data"]
    assert "![boxes]" in artifacts["annotate-samples"]["data"]
    assert artifacts["annotate-failures"]["data"] == "No image failed.\n"
    assert (job.folder / "labeled.report.html").read_bytes().count(b"<article") == 5
