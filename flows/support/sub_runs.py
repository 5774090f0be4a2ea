"""Runs a deployment from another run: start it, wait for it, cancel it together with the parent."""

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
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed

from blocks import VLLMServer
from vllm_annotate.errors import UsageError

POLL_SECONDS = 2.0
PAGE = 200  # the server's maximum
LIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
IDENTITY = ("output", "shard")  # parameters that two runs must not share


async def ended_run(deployment: str, parameters: Mapping[str, Any], name: str) -> State[Any]:
    """Runs a deployment, or waits for a run of it that has already started; returns the run's final state.

    Waits while the Prefect server is down. If cancelled, cancels the run.
    """
    async with get_client() as client:
        run = await _started_run(client, deployment, parameters, name)
        try:
            return await _final_state(client, run.id)
        except asyncio.CancelledError:
            await asyncio.shield(client.set_flow_run_state(run.id, Cancelling()))
            raise


async def begun_run(deployment: str, parameters: Mapping[str, Any], name: str) -> FlowRun:
    """Runs a deployment, or finds a run of it under way; does not wait for its end. Raises UsageError."""
    async with get_client() as client:
        return await _started_run(client, deployment, parameters, name)


async def check_deployment(name: str) -> None:
    """Raises UsageError if the deployment does not exist."""
    async with get_client() as client:
        try:
            await client.read_deployment_by_name(name)
        except (ObjectNotFound, ValueError):
            raise UsageError(f"deployment {name!r} does not exist: prefect deploy --all") from None


async def _started_run(client: PrefectClient, deployment: str, parameters: Mapping[str, Any], name: str) -> FlowRun:
    while True:
        try:
            # Look for it every time: the response to the request that started it may have been lost.
            run = await _run_under_way(client, deployment, parameters)
            return run or await arun_deployment(deployment, parameters=dict(parameters), flow_run_name=name, timeout=0)
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise UsageError(f"{deployment} does not accept these parameters: {error.response.text:.500}") from None
        except httpx.HTTPError:
            pass
        await asyncio.sleep(POLL_SECONDS)


async def _run_under_way(client: PrefectClient, deployment: str, parameters: Mapping[str, Any]) -> FlowRun | None:
    """The run with the same output and shard that a lost parent started, if any: a second one would conflict."""
    flow, _, name = deployment.partition("/")
    identity, page = [parameters[of] for of in IDENTITY], 0
    while True:
        runs = await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE))),
            limit=PAGE,
            offset=page * PAGE,
        )
        for run in runs:
            if [run.parameters.get(of) for of in IDENTITY] == identity:
                return run
        if len(runs) < PAGE:
            return None
        page += 1


async def _final_state(client: PrefectClient, run: UUID) -> State[Any]:
    """Polls for the final state: an event could be missed."""
    while True:
        try:
            state = (await client.read_flow_run(run)).state
        except ObjectNotFound:
            return Crashed(message="the run was deleted")
        except httpx.HTTPError:
            state = None
        if state is not None and state.is_final():
            return state
        await asyncio.sleep(POLL_SECONDS)


def run_parameter(block: Block | None) -> Any:
    """A block as a parameter of another run: a reference if it is saved, else its fields.

    Raises UsageError if the run's parameters would show a secret.
    """
    if block is None:
        return None
    if (saved := getattr(block, "_block_document_id", None)) is not None:
        return {"$ref": {"block_document_id": str(saved)}}
    if not isinstance(block, VLLMServer):
        return block.model_dump(mode="json", exclude_defaults=True, exclude={"block_type_slug"})
    if secrets := block.secrets():
        raise UsageError(
            f"the parameters of the runs that this one starts would show the server's {', '.join(secrets)}: save the "
            "server as a block and choose that, or set the variables for the workers (VLLM_API_KEY; others in "
            "environment_from)"
        )
    return block.without_secrets()
