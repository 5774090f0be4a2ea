"""Chunks as task runs of Prefect: the first so many."""

import logging
from collections.abc import Callable
from typing import Any

from prefect import flow

from flows.support.chunk_task import ChunkTasks
from stand_in.process import StandIn
from tests.conftest import Job, lines_of, read_prefect
from vllm_annotate.pipeline.session import open_run
from vllm_annotate.pipeline.steps import plan
from vllm_annotate.serving.settings import Server


async def test_further_chunks_run_without_a_task(
    make_job: Callable[..., Job], stand_in: StandIn, prefect_api: str, caplog: Any
) -> None:
    job, logger = make_job(20, distinct=2), logging.getLogger("vllm_annotate")
    parameters = job.parameters(Server(endpoints=[f"{stand_in.url}/v1"]), chunk_size=5)

    @flow
    async def annotate() -> str:
        async with open_run(parameters) as run:
            work = await plan(run, logger)
            await work.annotate(ChunkTasks(logger, most=2).of_input)
            await work.finish(logger)
        return "done"

    caplog.set_level(logging.INFO, "vllm_annotate")
    state: Any = await annotate(return_state=True)
    assert state.is_completed(), state.message
    graph = read_prefect(prefect_api, f"/flow_runs/{state.state_details.flow_run_id}/graph")
    assert sorted(task["name"] for task in graph) == ["chunk 1 of 4", "chunk 2 of 4"]
    assert [row["image_path"] for row in lines_of(job.output)] == job.names
    assert caplog.text.count("Prefect shows no further chunks: they run the same way") == 1
