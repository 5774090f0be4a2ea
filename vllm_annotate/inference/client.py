"""Sends requests: bounded, retried in one layer, spread over endpoints, and waiting for those that go down."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from vllm_annotate.errors import ImageFailure, ServerRefused, ServerUnavailable
from vllm_annotate.inference.concurrency import CEILING, ConcurrencyController
from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.inference.pool import Pool
from vllm_annotate.inference.rejections import Rejections, remedy_for
from vllm_annotate.inference.responses import Completion, Trouble
from vllm_annotate.inference.tries import Tries


class Inference:
    """The client of a run: one pool of endpoints and their request limits, shared by all chunks.

    `max_concurrency` bounds the requests in flight across all endpoints; "auto" finds a limit for each, within
    `most_connections` for all. An async context manager, bound to one event loop.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        api_key: str,
        *,
        max_concurrency: int | Literal["auto"] = "auto",
        most_connections: int = 65_536,
        request_timeout_seconds: float = 600,
        server_wait_seconds: float = 300,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        auto = max_concurrency == "auto"
        ceiling = min(CEILING, most_connections) if max_concurrency == "auto" else max_concurrency
        self._server_wait_seconds = server_wait_seconds
        self._suspects = asyncio.Lock()
        self._started = time.monotonic()
        self._model: str | None = None
        self.rejections = Rejections()
        self.on_answer: Callable[[Endpoint], None] = lambda _: None
        controllers = [ConcurrencyController(ceiling) if auto else None for _ in endpoints]
        self.pool = Pool(
            [
                Endpoint(url, api_key, request_timeout_seconds, ceiling, controller)
                for url, controller in zip(endpoints, controllers, strict=True)
            ],
            min(ceiling * len(endpoints), most_connections) if auto else ceiling,
            server_wait_seconds,
            warn,
        )

    async def __aenter__(self) -> Self:
        await self.pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.pool.__aexit__(kind, error, trace)

    async def check(self, model: str | None) -> str:
        """Returns the name of the model that every endpoint serves: `model`, or the only one.

        If an endpoint does not answer, the run starts without it as long as another does. Raises ServerUnavailable or
        ServerRefused with the remedy.
        """
        served: list[set[str]] = []
        away: dict[Endpoint, ServerUnavailable] = {}
        for endpoint in self.pool.endpoints:
            try:
                names = await endpoint.models()
            except ServerUnavailable as error:
                away[endpoint] = error
                continue
            await endpoint.is_healthy()  # finds out which URL to probe
            served.append(set(names))
            if model is not None and model not in names:
                raise _not_served(endpoint, model, names)
        if not served:
            raise next(iter(away.values()))
        for endpoint in away:
            self.pool.take_down(endpoint, "it does not answer")
        common = set.intersection(*served)
        if model is None and len(common) != 1:
            choice = self.pool.endpoints[0].listed(sorted(common))
            raise ServerRefused(f"every endpoint serves these models: {choice}; choose one with --model-name")
        self._model = model or common.pop()
        return self._model

    def counts(self) -> dict[str, dict[str, Any]]:
        """Per endpoint: answers, failed attempts, and the history of its limit with reasons."""
        return {endpoint.url: self._counts(endpoint) for endpoint in self.pool.endpoints}

    def _counts(self, endpoint: Endpoint) -> dict[str, Any]:
        changes = endpoint.controller.changes if endpoint.controller is not None else []
        return {
            "answered": endpoint.answered,
            "troubles": endpoint.troubles,
            "concurrency": {
                "mode": "fixed" if endpoint.controller is None else "auto",
                "limit": endpoint.limit,
                "most_in_flight": endpoint.most_in_flight,
                "changes": [
                    {"second": round(change.at - self._started, 1), "limit": change.limit, "why": change.why}
                    for change in changes
                ],
            },
        }

    async def versions(self, model: str) -> dict[str, dict[str, Any]]:
        """Per endpoint: what it reports about its version and the source of its model."""
        return {endpoint.url: await endpoint.version(model) for endpoint in self.pool.endpoints}

    async def ask(self, body: bytes) -> Completion:
        """Sends one request once an endpoint has room, and returns its completion.

        Raises ImageFailure (rejected, timeout, server) if the image is at fault or its attempts run out,
        ServerUnavailable if no endpoint comes back in time, ServerRefused if requests are refused whatever the image.
        """
        tries = Tries()
        while True:
            async with self._suspects if tries.is_suspect else nullcontext(), self.pool.lease() as endpoint:
                self.rejections.check()
                try:
                    with self.rejections.under_way(tries):
                        result = await endpoint.complete(body, tries.attempts + 1)
                except ImageFailure as failure:
                    self.rejections.add(failure, tries)
                    raise
                if isinstance(result, Completion):
                    self.rejections.answered(result)
                    self.on_answer(endpoint)
                    return result
                shared = self.rejections.in_trouble(tries, result) and not self._is_alone(tries)
                await self._strike(endpoint, result, last=tries.is_last and shared)
                up = await self.pool.is_up(endpoint)
            if result.cause == "not_found" and not self._is_alone(tries):
                result = replace(result, kind="server", cause="gateway")  # it serves the model, yet no image of it
            tries.count(result, up=up)
            self._check(tries, endpoint, result, shared=shared)
            await asyncio.sleep(tries.pause_seconds())

    def _is_alone(self, tries: Tries) -> bool:
        """Whether only this request is in trouble: others were answered since it began."""
        return self.pool.answered_at > tries.began

    async def _strike(self, endpoint: Endpoint, result: Trouble, *, last: bool) -> None:
        """Raises ServerRefused if the endpoint would refuse any request, and no other is left.

        `last`: it is the last attempt, and others are in the same trouble.
        """
        refusal = await self._refusal(endpoint, result, last=last) if result.cause in ("refused", "not_found") else None
        others = self.pool.strike(endpoint, result.message, refused=refusal is not None)
        if refusal is not None and not others:
            raise ServerRefused(f"{endpoint.url} returned {result.message}: {refusal}")

    async def _refusal(self, endpoint: Endpoint, result: Trouble, *, last: bool) -> str | None:
        """Why the endpoint refuses not only this request: it refuses its list of models too, or other images."""
        is_refused = result.cause == "refused"
        if last and is_refused:
            return f"it refuses other images too; {remedy_for(result.message)}"
        try:
            names = await endpoint.models()
        except ServerUnavailable:
            return None
        except ServerRefused as error:
            return str(error) if is_refused else None  # without a list of models, a 404 is a gateway's
        if self._model is not None and self._model not in names:
            return str(_not_served(endpoint, self._model, names))
        return None

    def _check(self, tries: Tries, endpoint: Endpoint, result: Trouble, *, shared: bool) -> None:
        """Raises what ends a request: ImageFailure if only this one is in trouble, else a ServerFault."""
        if tries.declined_for() > self._server_wait_seconds:
            if self._is_alone(tries):
                raise ImageFailure(result.kind, result.message, tries.attempts + tries.declined)
            remedy = (
                "lower --max-concurrency or the server's other load"
                if result.cause == "busy"
                else "check the servers behind this address"
            )
            raise ServerUnavailable(
                f"requests were declined for {self._server_wait_seconds:g} s, last by {endpoint.url}: "
                f"{result.message}; {remedy}"
            )
        if not tries.are_over:
            return
        if result.kind == "timeout" and shared:
            raise ServerUnavailable(
                f"{endpoint.url} is healthy but answers no request in time: restart it, or raise "
                "--request-timeout-seconds if its answers take that long"
            )
        failure = ImageFailure(result.kind, result.message, tries.attempts + tries.losses)
        if failure.kind == "rejected":
            self.rejections.add(failure, tries)
        raise failure


def _not_served(endpoint: Endpoint, model: str, names: list[str]) -> ServerRefused:
    return ServerRefused(
        f"{endpoint.url} does not serve {model!r}; it serves {endpoint.listed(names)}: set --model-name to one of these"
    )
