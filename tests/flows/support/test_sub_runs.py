"""Runs that a run starts: how many, each once, and with which parameters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from blocks import AnnotationRecipe, VLLMServer
from flows.support.sub_runs import WAITING, SubRuns, run_parameter
from vllm_annotate.errors import UsageError


@pytest.fixture
async def client(prefect_api: str) -> AsyncIterator[PrefectClient]:
    """A client of a server that other tests use too, so what a test makes is deleted."""
    async with get_client() as client:
        yield client
        await client.delete_flow((await client.read_flow_by_name("sub-flow")).id)


async def make_deployment(client: PrefectClient, name: str) -> str:
    """A deployment that no worker looks after."""
    flow = await client.create_flow_from_name("sub-flow")
    await client.create_deployment(flow, name)
    return f"sub-flow/{name}"


async def scheduled(client: PrefectClient, name: str) -> list[FlowRun]:
    deployment = await client.read_deployment_by_name(f"sub-flow/{name}")
    runs = await client.read_flow_runs()
    return [run for run in runs if run.deployment_id == deployment.id and run.state and run.state.is_scheduled()]


def shard(number: int) -> dict[str, str]:
    return {"output": "labeled", "shard": f"{number}/24"}


@pytest.mark.long
async def test_few_runs_wait_for_a_worker_at_once_and_all_come_to_their_end(client: PrefectClient) -> None:
    most, ended = 0, 0
    async with SubRuns(await make_deployment(client, "many")) as runs, asyncio.TaskGroup() as group:
        waiting = [group.create_task(runs.ended(shard(number), f"{number}")) for number in range(24)]
        while not all(task.done() for task in waiting):
            found = await scheduled(client, "many")
            most = max(most, len(found))
            if len(found) in (WAITING, 24 - ended):
                for run in found:
                    await client.set_flow_run_state(run.id, Completed(), force=True)
                    ended += 1
            await asyncio.sleep(0.1)
    assert most == WAITING
    assert ended == 24
    assert all(task.result().is_completed() for task in waiting)


async def test_a_run_under_way_that_a_lost_flow_started_is_found_again(client: PrefectClient) -> None:
    deployment = await make_deployment(client, "found")
    async with SubRuns(deployment) as runs:
        first = await runs.begun(shard(1), "first")
    async with SubRuns(deployment) as runs:
        assert (await runs.begun(shard(1), "again")).id == first.id
        assert (await runs.begun(shard(2), "other")).id != first.id
        await client.set_flow_run_state(first.id, Completed(), force=True)
        assert (await runs.begun(shard(1), "after its end")).id != first.id


@asynccontextmanager
async def losing_an_answer(api: str, path: str) -> AsyncIterator[str]:
    """A way to the API on which the answer to the first request of this path is lost."""
    left = [path]

    async def forward(request: web.Request) -> web.StreamResponse:
        async with session.request(
            request.method, api.removesuffix("/api") + str(request.rel_url), data=await request.read(),
            headers={"content-type": "application/json"},
        ) as answer:  # fmt: skip
            content = await answer.read()
        if left and request.path.endswith(left[0]):
            left.clear()
            assert request.transport is not None
            request.transport.close()
        return web.Response(body=content, status=answer.status, content_type=answer.content_type)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    async with aiohttp.ClientSession() as session:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/api"
        await runner.cleanup()
    assert not left, "an answer was lost"


async def test_a_run_whose_answer_is_lost_is_started_once(client: PrefectClient, prefect_api: str) -> None:
    deployment = await make_deployment(client, "once")
    async with losing_an_answer(prefect_api, "/create_flow_run") as url:
        with temporary_settings({PREFECT_API_URL: url}):
            async with SubRuns(deployment) as runs:
                begun = await runs.begun(shard(1), "once")
    assert [run.id for run in await scheduled(client, "once")] == [begun.id]


def test_a_block_that_is_not_saved_is_passed_by_its_fields() -> None:
    start: Any = {"model_path": "m", "environment": {"NCCL_P2P_DISABLE": "1"}, "environment_from": ["HF_TOKEN"]}
    assert run_parameter(VLLMServer(endpoints=["http://a/v1"], start=start)) == {
        "endpoints": ["http://a/v1"], "start": start,
    }  # fmt: skip
    assert run_parameter(AnnotationRecipe(language="zh")) == {"language": "zh"}
    assert run_parameter(None) is None


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"api_key": "sesame"}, "api_key:"),
        ({"start": {"model_path": "m", "environment": {"HF_TOKEN": "sesame"}}}, "environment HF_TOKEN:"),
    ],
)
def test_secrets_are_not_passed_in_plain_text(fields: Any, names: str) -> None:
    with pytest.raises(UsageError, match=f"would show the server's {names} save the server as a block") as caught:
        run_parameter(VLLMServer(**fields))
    assert "sesame" not in str(caught.value)
