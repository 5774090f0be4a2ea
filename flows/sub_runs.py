"""Runs of a deployment that another run starts, waits for and cancels with itself."""

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import arun_deployment
from prefect.states import Cancelling

from flows.errors import UsageError

POLL_SECONDS = 2.0
LIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
IDENTITY = ("output", "shard")  # parameters that two runs must not share


async def ended_run(deployment: str, parameters: Mapping[str, Any], name: str) -> State[Any]:
    """Runs a deployment, and returns the final state of the run; one that is under way already is waited for instead.

    Cancelled while it waits, it cancels the run.
    """
    async with get_client() as client:
        run = await _run_under_way(client, deployment, parameters)
        if run is None:
            run = await arun_deployment(deployment, parameters=dict(parameters), flow_run_name=name, timeout=0)
        try:
            return await _final_state(client, run.id)
        except asyncio.CancelledError:
            await asyncio.shield(client.set_flow_run_state(run.id, Cancelling()))
            raise


async def _run_under_way(client: PrefectClient, deployment: str, parameters: Mapping[str, Any]) -> FlowRun | None:
    """The run that a lost parent has left, if there is one: two would only stand in each other's way."""
    flow, _, name = deployment.partition("/")
    runs = await client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE))),
    )
    identity = [parameters[of] for of in IDENTITY]
    return next((run for run in runs if [run.parameters.get(of) for of in IDENTITY] == identity), None)


async def _final_state(client: PrefectClient, run: UUID) -> State[Any]:
    """Polls, for an event can be missed: a server that is away for a while is waited for."""
    while True:
        try:
            state = (await client.read_flow_run(run)).state
        except httpx.HTTPError:
            state = None
        if state is not None and state.is_final():
            return state
        await asyncio.sleep(POLL_SECONDS)


def run_parameter(block: Block | None) -> Any:
    """A block as the parameter of another run: by reference where it is saved, else field by field.

    Raises UsageError where a key would stand in the run's record for everybody to read.
    """
    if block is None:
        return None
    if (saved := getattr(block, "_block_document_id", None)) is not None:
        return {"$ref": {"block_document_id": str(saved)}}
    if getattr(block, "api_key", None) is not None:
        raise UsageError(
            "the server's API key would be seen in the parameters of every shard's run: save the server as a block and "
            "choose that, or set VLLM_API_KEY where the workers run"
        )
    return block.model_dump(mode="json", exclude_defaults=True, exclude={"block_type_slug"})
