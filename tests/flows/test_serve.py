"""A resident server: started by one flow run, used by others, stopped by another."""

from collections.abc import Callable
from typing import Any

import pytest

from blocks import VLLMServer
from flows.serve import serve, stop_server
from tests.conftest import Job
from tests.flows.test_annotate import annotate_with
from tests.serving.conftest import launch, make_model, vllm
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.probe import served_models
from vllm_annotate.serving.record import Users, record_path

__all__ = ["launch", "make_model", "vllm"]  # fixtures
pytestmark = pytest.mark.usefixtures("prefect_api")


async def test_a_server_is_started_used_by_two_runs_and_stopped(
    launch: Callable[..., Launch],
    make_job: Callable[..., Job],
) -> None:
    block = VLLMServer(start=launch(log_folder=None))
    state: Any = await serve(block, return_state=True)
    assert state.message == f"vLLM runs at {block.urls()[0]}"
    for number in range(2):
        job = make_job(3 + number)
        state = await annotate_with(job, block)
        assert state.is_completed(), state.message
        assert served_models(block.urls()[0]) == ["qwen2.5-vl-7b"], "runs leave it up"
    with Users(record_path(launch().port)) as run:
        assert run.try_share()
        state = await stop_server(block, return_state=True)
        assert state.is_failed()
        assert "a run uses the server" in state.message
    state = await stop_server(block, return_state=True)
    assert state.message == f"stopped the server on port {launch().port}"
    assert served_models(block.urls()[0]) is None
    state = await stop_server(block, return_state=True)
    assert state.is_completed()
    assert state.message == f"no server that vllm-annotate started runs on port {launch().port}"


async def test_a_block_without_a_start_is_refused() -> None:
    for flow in (serve, stop_server):
        state: Any = await flow(VLLMServer(), return_state=True)
        assert state.is_failed()
        assert "has no Start" in state.message
