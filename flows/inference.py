"""Request bodies → completions: bounded, retried in one layer, spread over endpoints, patient when they go away."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import openai

from flows.endpoint import REQUEST_ERRORS, Completion, Endpoint, Trouble, classify, read_completion
from flows.errors import ImageFailure, ServerRefused, ServerUnavailable

MAX_ATTEMPTS = 4  # of one image on a server that is healthy
MAX_SERVER_LOSSES = 6  # of one image: a server that dies each time it sees it is not to be blamed for ever
SUSPECT_LOSSES = 2  # from then on it is asked apart from other suspects, lest innocent ones share its end
MAX_STRIKES = 3  # attempts in a row without an answer before an endpoint rests, if there are others
REST_SECONDS = 10
HEALTH_INTERVAL_SECONDS = 0.5
BACKOFF_SECONDS = (0.25, 8.0)  # first and longest


class Inference:
    """The client of a run: one pool of endpoints and one limit of requests in flight, shared by all chunks.

    Use it as an async context manager, within one event loop.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        api_key: str,
        *,
        max_concurrency: int,
        request_timeout_seconds: float = 600,
        server_wait_seconds: float = 300,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.max_concurrency = max_concurrency
        self._warn = warn
        self._server_wait_seconds = server_wait_seconds
        self._slots = asyncio.Semaphore(max_concurrency)
        self._suspects = asyncio.Lock()
        self._endpoints = [Endpoint(url, api_key, request_timeout_seconds, max_concurrency) for url in endpoints]
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.close()

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered."""
        return sum(endpoint.in_flight for endpoint in self._endpoints)

    async def check(self, model: str | None) -> str:
        """The name of the model that every endpoint serves: `model` itself, or the only one there is.

        An endpoint that does not answer is left to come back, as long as another does. Raises ServerUnavailable or
        ServerRefused with the remedy.
        """
        served: list[set[str]] = []
        away: dict[Endpoint, ServerUnavailable] = {}
        for endpoint in self._endpoints:
            try:
                names = await _served_models(endpoint)
            except ServerUnavailable as error:
                away[endpoint] = error
                continue
            await endpoint.find_probe()
            served.append(set(names))
            if model is not None and model not in names:
                listed = ", ".join(map(repr, names)) or "none"
                raise ServerRefused(
                    f"{endpoint.url} does not serve model {model!r} but {listed}: set --model-name to one of these"
                )
        if not served:
            raise next(iter(away.values()))
        for endpoint in away:
            self._take_down(endpoint, "it does not answer")
        common = set.intersection(*served)
        if model is None and len(common) != 1:
            choice = ", ".join(map(repr, sorted(common))) or "none"
            raise ServerRefused(f"the models that every endpoint serves are {choice}: say which with --model-name")
        return model or common.pop()

    def counts(self) -> dict[str, dict[str, int]]:
        """How many requests each endpoint answered, and how many attempts ended without an answer."""
        return {
            endpoint.url: {"answered": endpoint.answered, "troubles": endpoint.troubles} for endpoint in self._endpoints
        }

    async def versions(self) -> dict[str, dict[str, Any]]:
        """What each endpoint's /version says."""
        return {endpoint.url: await endpoint.version() for endpoint in self._endpoints}

    async def ask(self, body: bytes) -> Completion:
        """The completion of one request, once a slot is free.

        Raises ImageFailure (rejected, timeout, server) when the image is at fault or its attempts run out on
        a healthy server, ServerUnavailable when no endpoint came back in time, ServerRefused for a key or model that is
        no longer accepted.
        """
        async with self._slots:
            return await self._ask(body)

    async def _ask(self, body: bytes) -> Completion:
        attempts = losses = declined = 0
        declined_since = math.inf
        while True:
            endpoint = await self._endpoint()
            async with self._suspects if losses >= SUSPECT_LOSSES else nullcontext():
                result = await self._attempt(endpoint, body, attempts + 1)
                if isinstance(result, Completion):
                    return result
                up = await self._is_up(endpoint)
            if result.busy:
                declined += 1
                declined_since = min(declined_since, time.monotonic())
                if time.monotonic() - declined_since > self._server_wait_seconds:
                    raise ServerUnavailable(
                        f"declined for {self._server_wait_seconds:g} s, last by {endpoint.url}: {result.message}; "
                        "lower --max-concurrency or give the server less other work"
                    )
            elif up:
                attempts += 1
            else:
                losses += 1
            if attempts >= MAX_ATTEMPTS or losses >= MAX_SERVER_LOSSES:
                raise ImageFailure(result.kind, result.message, attempts + losses)
            first, longest = BACKOFF_SECONDS
            tries = min(attempts + losses + declined, 10)
            await asyncio.sleep(random.uniform(0.5, 1) * min(longest, first * 2**tries))

    async def _attempt(self, endpoint: Endpoint, body: bytes, attempt: int) -> Completion | Trouble:
        """One request: its answer, or the trouble that another attempt may end.

        Raises ImageFailure where none can, ServerRefused where no other endpoint is left to try.
        """
        try:
            result = read_completion(await endpoint.post(body), attempt)
        except REQUEST_ERRORS as error:
            result = classify(error, endpoint.describe(error), attempt)
        if isinstance(result, Completion):
            endpoint.strikes = 0
            endpoint.answered += 1
            return result
        endpoint.strikes += 1
        endpoint.troubles += 1
        others = any(other.up.is_set() for other in self._endpoints if other is not endpoint)
        if result.refused and not others:
            raise ServerRefused(f"{endpoint.url} answers {result.message}: check the API key and the model name")
        if others and (result.refused or endpoint.strikes >= MAX_STRIKES):
            self._take_down(endpoint, result.message, REST_SECONDS)
        return result

    async def _endpoint(self) -> Endpoint:
        """The healthy endpoint with the least in flight; waits for one while there is none."""
        while True:
            up = [endpoint for endpoint in self._endpoints if endpoint.up.is_set()]
            if up:
                return min(up, key=lambda endpoint: endpoint.in_flight)
            down_for = time.monotonic() - max(endpoint.down_since for endpoint in self._endpoints)
            patience = self._server_wait_seconds - down_for
            if patience <= 0:
                urls = ", ".join(endpoint.url for endpoint in self._endpoints)
                raise ServerUnavailable(
                    f"no answer from {urls} for {down_for:.0f} s: see the server's log, start it again and run the "
                    "same command; what was answered is kept"
                )
            waits = [asyncio.ensure_future(endpoint.up.wait()) for endpoint in self._endpoints]
            try:
                await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _is_up(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint is healthy; if not, it gets no requests until a watcher sees it back."""
        if not endpoint.up.is_set():
            return False
        if await endpoint.is_healthy():
            return True
        self._take_down(endpoint, "it does not answer")
        return False

    def _take_down(self, endpoint: Endpoint, why: str, rest_seconds: float = 0) -> None:
        """No more requests for the endpoint until it has rested and is healthy."""
        if not endpoint.up.is_set():
            return
        endpoint.up.clear()
        endpoint.down_since = time.monotonic()
        others = any(other.up.is_set() for other in self._endpoints)
        then = "the others take its requests" if others else f"waiting for it up to {self._server_wait_seconds:g} s"
        self._warn(f"{endpoint.url} gets no more requests: {why}; {then}")
        self._watchers[endpoint.url] = asyncio.create_task(self._watch(endpoint, rest_seconds))

    async def _watch(self, endpoint: Endpoint, rest_seconds: float) -> None:
        await asyncio.sleep(rest_seconds)
        while not await endpoint.is_healthy():  # noqa: ASYNC110 - there is no event for a server's return
            await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
        endpoint.strikes = 0
        endpoint.up.set()
        self._warn(f"{endpoint.url} answers again, after {time.monotonic() - endpoint.down_since:.0f} s")


async def _served_models(endpoint: Endpoint) -> list[str]:
    try:
        return await endpoint.models()
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        raise ServerRefused(
            f"{endpoint.url} refuses the API key: set VLLM_API_KEY (or the block's api_key) to the server's --api-key"
        ) from None
    except openai.NotFoundError:
        raise ServerRefused(f"{endpoint.url} has no /models: a vLLM base URL ends in /v1") from None
    except REQUEST_ERRORS as error:
        raise ServerUnavailable(
            f"no vLLM answers at {endpoint.url} ({endpoint.describe(error)}): start it (vllm serve MODEL --port "
            f"{urlsplit(endpoint.url).port or 80}), or set --api-base to where it runs"
        ) from None
