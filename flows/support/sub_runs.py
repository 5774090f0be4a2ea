"""Runs a deployment from another run: start it, wait for it, cancel it together with the parent."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
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
WAITING = 10  # for a worker, at most: with hundreds that are late, a Prefect server on SQLite locks itself out
LOOKS_PER_SECOND = 50  # of runs: more of them are looked at less often
PAGE = 200  # the server's maximum
LIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
Identity = tuple[str, str]
Answer = TypeVar("Answer")


class SubRuns:
    """Runs of a deployment that a flow starts and waits for. A context manager.

    Goes on while the Prefect server is down.
    """

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._held = AsyncExitStack()
        self._client: PrefectClient
        self._under_way: dict[Identity, FlowRun] = {}  # which a lost flow started: second ones would conflict
        self._waited: set[UUID] = set()
        self._states: dict[UUID, State[Any]] = {}
        self._turns = asyncio.Semaphore(WAITING)
        self._looking = asyncio.Lock()
        self._next_look = 0.0

    async def __aenter__(self) -> Self:
        """Finds which runs are under way. Raises UsageError if the Prefect server refuses to tell."""
        self._client = await self._held.enter_async_context(get_client())
        try:
            self._under_way = await _answered(self._find_under_way)
        except BaseException as error:
            await self._held.aclose()
            if isinstance(error, httpx.HTTPStatusError):
                raise UsageError(f"the Prefect server refuses to list runs: {error.response.text:.500}") from None
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes the connection."""
        await self._held.aclose()

    async def begun(self, parameters: Mapping[str, Any], name: str) -> FlowRun:
        """Starts a run, or finds the one of the same output and shard; does not wait. Raises UsageError."""
        if (run := self._under_way.pop(_identity(parameters), None)) is not None:
            return run
        # With the same key the server makes no second run, if the response to the first request was lost.
        start = partial(
            arun_deployment, self._deployment, parameters=dict(parameters), flow_run_name=name, timeout=0,
            idempotency_key=str(uuid4()),
        )  # fmt: skip
        try:
            return await _answered(start)
        except httpx.HTTPStatusError as error:
            raise UsageError(
                f"{self._deployment} does not accept these parameters: {error.response.text:.500}"
            ) from None

    async def ended(self, parameters: Mapping[str, Any], name: str) -> State[Any]:
        """Does the same, and returns the run's final state. If cancelled, cancels the run."""
        run = self._under_way.pop(_identity(parameters), None)
        try:
            if run is None:
                async with self._turns:
                    run = await self.begun(parameters, name)
                    await self._reached(run, lambda state: not (state.is_scheduled() or state.is_pending()))
            return await self._reached(run, State.is_final)
        except asyncio.CancelledError:
            if run is not None:
                await asyncio.shield(self._client.set_flow_run_state(run.id, Cancelling()))
            raise

    async def _reached(self, run: FlowRun, is_it: Callable[[State[Any]], bool]) -> State[Any]:
        """Waits until a run has a state of a kind; returns it."""
        self._waited.add(run.id)
        try:
            while (state := self._states.get(run.id)) is None or not is_it(state):
                await asyncio.sleep(POLL_SECONDS)
                await self._look()
        finally:
            self._waited.discard(run.id)
        return state

    async def _look(self) -> None:
        """Asks for the states of all runs at once, for all who wait. Polls: an event could be missed."""
        async with self._looking:
            if time.monotonic() < self._next_look:
                return
            waited = list(self._waited)
            with suppress(httpx.HTTPError):
                for page in range(0, len(waited), PAGE):
                    ids = waited[page : page + PAGE]
                    runs = await self._client.read_flow_runs(
                        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)), limit=PAGE
                    )
                    self._states |= {run.id: run.state for run in runs if run.state}
                    deleted = {*ids} - {run.id for run in runs}
                    self._states |= dict.fromkeys(deleted, Crashed(message="the run was deleted"))
            self._next_look = time.monotonic() + max(POLL_SECONDS, len(waited) / LOOKS_PER_SECOND)

    async def _find_under_way(self) -> dict[Identity, FlowRun]:
        flow, _, name = self._deployment.partition("/")
        found: list[FlowRun] = []
        while True:
            runs = await self._client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
                flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE))),
                limit=PAGE,
                offset=len(found),
            )
            found += runs
            if len(runs) < PAGE:
                return {_identity(run.parameters): run for run in found}


def _identity(parameters: Mapping[str, Any]) -> Identity:
    """The parameters that two runs must not share."""
    return str(parameters.get("output")), str(parameters.get("shard"))


async def _answered(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of the Prefect server, once there is one. Raises HTTPStatusError if it refuses."""
    while True:
        try:
            return await ask()
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise
        except httpx.HTTPError:
            pass
        await asyncio.sleep(POLL_SECONDS)


async def check_deployment(name: str) -> None:
    """Raises UsageError if the deployment does not exist."""
    async with get_client() as client:
        try:
            await client.read_deployment_by_name(name)
        except (ObjectNotFound, ValueError):
            raise UsageError(f"deployment {name!r} does not exist: prefect deploy --all") from None


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
