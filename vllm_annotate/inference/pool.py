"""Spreads requests over endpoints.

A request leases an endpoint that is up and below its limit, the least loaded one. If all are full or down, the request
queues, first in, first out.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from vllm_annotate.errors import ServerFault, ServerRefused, ServerUnavailable
from vllm_annotate.inference.endpoint import Endpoint

MAX_STRIKES = 3  # failed attempts in a row before an endpoint rests, if others are up
REST_SECONDS = 10
HEALTH_INTERVAL_SECONDS = 0.5


class Pool:
    """The endpoints of a run and the requests that wait for one. An async context manager, bound to one event loop."""

    def __init__(
        self, endpoints: Sequence[Endpoint], ceiling: int, wait_seconds: float, warn: Callable[[str], None]
    ) -> None:
        self.endpoints = endpoints
        self.on_room: Callable[[], None] = lambda: None  # called when the limit rises
        self.admit: Callable[[Endpoint], Awaitable[bool]] = _admit  # an endpoint that is back; raises ServerRefused
        self._ceiling = ceiling
        self._wait_seconds = wait_seconds
        self._warn = warn
        self._queue: deque[asyncio.Future[Endpoint]] = deque()
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        for endpoint in self.endpoints:
            if endpoint.controller is not None:
                self._in_background(endpoint, "steer", self._steer(endpoint))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for endpoint in self.endpoints:
            await endpoint.close()

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet answered."""
        return sum(endpoint.in_flight for endpoint in self.endpoints)

    @property
    def answered_at(self) -> float:
        """When an endpoint last answered a request: monotonic seconds, 0 if none has."""
        return max(endpoint.answered_at for endpoint in self.endpoints)

    @property
    def queued(self) -> int:
        """Requests that wait for an endpoint."""
        return len(self._queue)

    @property
    def limit(self) -> int:
        """Current maximum of requests in flight."""
        return min(self._ceiling, sum(endpoint.limit for endpoint in self.endpoints))

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Endpoint]:
        """Waits for an endpoint with room for one request. Raises ServerUnavailable if none comes back in time."""
        endpoint = await self._next_endpoint()
        try:
            yield endpoint
        finally:
            self._release(endpoint)

    async def _next_endpoint(self) -> Endpoint:
        if (error := self._given_up()) is not None:
            raise error
        if not self._queue and (endpoint := self._free_endpoint()) is not None:
            endpoint.take()
            return endpoint
        turn: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release(turn.result())  # cancelled just as its turn came
            raise

    def _release(self, endpoint: Endpoint) -> None:
        endpoint.in_flight -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        """Gives free endpoints to waiting requests."""
        while self._queue and (endpoint := self._free_endpoint()) is not None:
            if not (turn := self._queue.popleft()).done():  # done: cancelled
                endpoint.take()
                turn.set_result(endpoint)

    def _free_endpoint(self) -> Endpoint | None:
        if self.in_flight >= self._ceiling:
            return None
        free = [one for one in self.endpoints if one.up.is_set() and one.in_flight < one.limit]
        return min(free, key=lambda one: one.in_flight / one.limit, default=None)

    def strike(self, endpoint: Endpoint, why: str, *, refused: bool) -> bool:
        """Counts a failed attempt; returns whether another endpoint is up."""
        endpoint.strikes += 1
        endpoint.troubles += 1
        others = any(other.up.is_set() for other in self.endpoints if other is not endpoint)
        if others and (refused or endpoint.strikes >= MAX_STRIKES):
            self.take_down(endpoint, why, REST_SECONDS)
        return others

    async def is_up(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint is healthy; if not, takes it down."""
        if not endpoint.up.is_set():
            return False
        if await endpoint.is_healthy():
            return True
        self.take_down(endpoint, "it does not answer")
        return False

    def take_down(self, endpoint: Endpoint, why: str, rest_seconds: float = 0) -> None:
        """Sends the endpoint no requests until it has rested and is healthy."""
        if not endpoint.up.is_set():
            return
        endpoint.up.clear()
        endpoint.down_since = time.monotonic()
        if any(other.up.is_set() for other in self.endpoints):
            then = "the others take its requests"
        else:
            then = "waiting for it" + ("" if endpoint.kept else f" for up to {self._wait_seconds:g} s")
        self._warn(f"{endpoint.url} is down: {why}; {then}")
        self._in_background(endpoint, "watch", self._watch(endpoint, rest_seconds))

    def _in_background(self, endpoint: Endpoint, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine beside the requests; if it fails, warns."""
        task = self._tasks[endpoint.url, what] = asyncio.create_task(work)
        task.add_done_callback(
            lambda done: (
                done.cancelled()
                or done.exception() is None
                or self._warn(f"{endpoint.url}: {what} failed with {done.exception()!r}: please report this")
            )
        )

    def lose(self, endpoint: Endpoint, why: str) -> None:
        """Takes down an endpoint whose server will not be restarted."""
        endpoint.kept, endpoint.lost = False, why
        self.take_down(endpoint, why)

    def reduce(self, endpoint: Endpoint, why: str) -> None:
        """Halves the endpoint's limit for the rest of the run: its server ran out of memory."""
        endpoint.reduce(why)
        self._warn(f"{endpoint.url}: limit lowered to {endpoint.limit} requests in flight: {why}")

    async def _watch(self, endpoint: Endpoint, rest_seconds: float) -> None:
        rested_at = time.monotonic() + rest_seconds
        while True:
            if time.monotonic() >= rested_at and await endpoint.is_healthy():
                if await self._is_admitted(endpoint):
                    break
                rested_at = time.monotonic() + REST_SECONDS
            if (error := self._given_up()) is not None:
                while self._queue:
                    if not (turn := self._queue.popleft()).done():
                        turn.set_exception(error)
            await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
        endpoint.strikes, endpoint.lost, endpoint.refused = 0, "", False
        endpoint.up.set()
        self._warn(f"{endpoint.url} is back after {time.monotonic() - endpoint.down_since:.0f} s")
        self._hand_out()

    async def _is_admitted(self, endpoint: Endpoint) -> bool:
        """Whether a healthy endpoint may have requests again."""
        try:
            return await self.admit(endpoint)
        except ServerRefused as error:
            if not endpoint.lost:
                self._warn(f"{error}; it gets no more requests")
            why = str(error).removeprefix(f"{endpoint.url}: ")
            endpoint.kept, endpoint.lost, endpoint.refused = False, why, True
            return False

    def _given_up(self) -> ServerFault | None:
        """The error to raise if all endpoints have been down for too long, else None."""
        if any(endpoint.up.is_set() or endpoint.kept for endpoint in self.endpoints):
            return None
        lost = [f"{endpoint.url}: {endpoint.lost}" for endpoint in self.endpoints if endpoint.lost]
        if len(lost) == len(self.endpoints):
            refused = any(endpoint.refused for endpoint in self.endpoints)
            fault = ServerRefused if refused else ServerUnavailable
            return fault(f"{'; '.join(lost)}; all answers so far are saved")
        down_for = time.monotonic() - max(endpoint.down_since for endpoint in self.endpoints)
        if down_for < self._wait_seconds:
            return None
        urls = ", ".join(endpoint.url for endpoint in self.endpoints)
        return ServerUnavailable(
            f"no answer from {urls} for {down_for:.0f} s: check the server's log, restart it and run the same command "
            "again; all answers so far are saved"
        )

    async def _steer(self, endpoint: Endpoint) -> None:
        """Adjusts the endpoint's limit to the server's metrics."""
        controller = endpoint.controller
        assert controller is not None  # noqa: S101 - for the type checker
        fault = ""
        while True:
            await asyncio.sleep(controller.poll_seconds)
            if endpoint.up.is_set() and (sample := await endpoint.sample()) is not None:
                if endpoint.metrics_fault != fault:
                    fault = endpoint.metrics_fault
                    self._warn(f"{endpoint.url}/metrics is not used, and the limit follows the answers: {fault}")
                before = controller.limit
                controller.update(sample)
                if controller.limit > before:
                    self._hand_out()
                    self.on_room()


async def _admit(_: Endpoint) -> bool:
    return True
