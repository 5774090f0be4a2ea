"""One input on two workers: shards as sub-runs, a worker that dies, and the same result as one run."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect, lines_of
from tests.deployed.conftest import Deployed, descendants
from tests.support.corpus import Corpus

MakeJob = Callable[..., Job]
Parameters = Callable[..., dict[str, Any]]
SHARDED, SHARD = "annotate-sharded/annotate-sharded", "annotate-images/shard"
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")

pytestmark = pytest.mark.deployed


def runs_shards(deployed: Deployed, run: str, worker: int) -> bool:
    """Whether a worker is running a shard of the run."""
    running = [shard["id"] for shard in deployed.sub_runs_of(run) if shard["state"]["name"] == "Running"]
    return any(deployed.pid_of(shard) in descendants(worker) for shard in running)


@pytest.mark.parametrize(
    ("database", "files"),
    [("sqlite", 1), ("postgresql", 10)],
    indirect=["database"],
    ids=["file-sqlite", "folder-postgresql"],
)
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("no_worker")
def test_two_workers_do_five_shards_though_one_is_killed(
    deployed: Deployed, make_job: MakeJob, parameters: Parameters, files: int
) -> None:
    """Of one file each shard has some rows; of ten files each has two."""
    with StandIn.started("--canned", "--prefill-seconds", "0.3") as server:
        job, whole = make_job(240), make_job(240, folder=deployed.folder / "whole")
        corpus = Corpus(job, files)
        several = {"input": str(corpus.folder), "output": str(corpus.output)} if files > 1 else {}
        doomed, other = (deployed.start_worker(name, "--limit", "3") for name in ("doomed", "other"))
        try:
            given = parameters(job, server.url, shards=5, at_once=3, max_concurrency=4)
            run = deployed.run(SHARDED, **given | several)
            while len(server.asked()) < 20:
                time.sleep(0.1)
            if deployed.pid_of(run) in descendants(doomed.pid):  # the worker with the coordinating run must live
                doomed, other = other, doomed
            while not runs_shards(deployed, run, doomed.pid):
                assert deployed.state_of(run)["name"] == "Running"
                time.sleep(0.1)
            for process in [doomed.pid, *descendants(doomed.pid)]:
                os.kill(process, signal.SIGKILL)
            doomed.wait()
            state = deployed.wait_for(run, *ENDED, seconds=500)
        finally:
            for worker in (doomed, other):
                worker.terminate()
                worker.wait(30)
        assert state["name"] == "Completed", state
        # A file that the dead worker had finished was already answered when its shard was restarted.
        assert re.search(r"240 images: \d+ answered(, \d+ already answered)?, 0 failed", state["message"])
        shards = deployed.sub_runs_of(run)
        states = [shard["state"]["name"] for shard in shards]
        # A busy Prefect server can lose the answer to a request that starts a run, which is then started once more.
        completed = {shard["parameters"]["shard"] for shard in shards if shard["state"]["name"] == "Completed"}
        assert completed == {f"{number}/5" for number in range(1, 6)}
        assert 0 < states.count("Crashed") <= 3, "those that the dead worker had"
        repeated = sum(server.asked().values()) - 240
        assert repeated <= 3 * (4 + 4), "only what was in flight when the worker died"
        if files > 1:
            assert corpus.answers() == corpus.asked()
            return
        server.forget()
        assert whole.run(server.url, PREFECT_API_URL=deployed.api).returncode == 0
    assert job.output.read_bytes() == whole.output.read_bytes()


@pytest.mark.usefixtures("worker")
def test_cancelling_the_run_cancels_its_shards(deployed: Deployed, make_job: MakeJob, parameters: Parameters) -> None:
    with StandIn.started("--canned", "--prefill-seconds", "0.3") as server:
        job = make_job(600)
        run = deployed.run(SHARDED, **parameters(job, server.url, shards=2, max_concurrency=1))  # 90 s
        while len(server.asked()) < 10:
            time.sleep(0.2)
        ask_prefect(deployed.api, f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
        deployed.wait_for(run, "Cancelled")
        for shard in deployed.sub_runs_of(run):
            assert deployed.wait_for(shard["id"], *ENDED)["name"] == "Cancelled"
        asked = len(server.asked())
        time.sleep(3)
        assert len(server.asked()) == asked < 600
        again = deployed.run(SHARDED, **parameters(job, server.url, shards=3))
        refused = deployed.wait_for(again, *ENDED)
        assert refused["name"] == "Failed"
        assert "from a run in 2 shards: go on with 2 shards" in refused["message"]
        server.forget()
        again = deployed.run(SHARDED, **parameters(job, server.url, shards=2))
        assert deployed.wait_for(again, *ENDED)["name"] == "Completed"
        assert len(server.asked()) <= 600 - asked + 4
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


@pytest.mark.usefixtures("worker")
def test_a_shard_that_keeps_failing_is_named_and_the_others_are_merged(
    deployed: Deployed, make_job: MakeJob, stand_in: StandIn, parameters: Parameters
) -> None:
    job = make_job(12)
    shutil.rmtree(job.images)
    job.images.mkdir()
    run = deployed.run(
        SHARDED, **parameters(job, stand_in.url, shards=1, shard_retries=0, error_budget=0, deployment=SHARD)
    )
    state = deployed.wait_for(run, *ENDED)
    assert state["name"] == "Failed"
    assert "no shard has any answers to merge. 1/1: Failed: none of 12 sampled images exists" in state["message"]
    run = deployed.run(SHARDED, **parameters(job, stand_in.url, shards=1, deployment="no/such"))
    assert "deployment 'no/such' does not exist" in deployed.wait_for(run, *ENDED)["message"]
