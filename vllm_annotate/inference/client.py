"""Sends requests: bounded, retried in one layer, spread over endpoints, and waiting for those that go down."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import openai

from vllm_annotate.errors import ImageFailure, ServerRefused, ServerUnavailable
from vllm_annotate.inference.concurrency import CEILING, ConcurrencyController
from vllm_annotate.inference.endpoint import REQUEST_ERRORS, Endpoint
from vllm_annotate.inference.pool import Pool
from vllm_annotate.inference.responses import Completion, Trouble

MAX_ATTEMPTS = 4  # per image, on a healthy server
MAX_SERVER_LOSSES = 6  # per image: if the server dies this often on it, the image is at fault
SUSPECT_LOSSES = 2  # from here on, images are sent one at a time, so that one that kills servers takes no other along
BACKOFF_SECONDS = (0.25, 8.0)  # first, longest


class Inference:
    """The client of a run: one pool of endpoints and their request limits, shared by all chunks.

    `max_concurrency` bounds the requests in flight across all endpoints; "auto" finds a limit for each. An async
    context manager, bound to one event loop.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        api_key: str,
        *,
        max_concurrency: int | Literal["auto"] = "auto",
        request_timeout_seconds: float = 600,
        server_wait_seconds: float = 300,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        auto = max_concurrency == "auto"
        ceiling = CEILING if max_concurrency == "auto" else max_concurrency
        self._server_wait_seconds = server_wait_seconds
        self._suspects = asyncio.Lock()
        self._started = time.monotonic()
        self.pool = Pool(
            [
                Endpoint(url, api_key, request_timeout_seconds, ceiling, ConcurrencyController() if auto else None)
                for url in endpoints
            ],
            ceiling * len(endpoints) if auto else ceiling,
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
                names = await _served_models(endpoint)
            except ServerUnavailable as error:
                away[endpoint] = error
                continue
            await endpoint.is_healthy()  # finds out which URL to probe
            served.append(set(names))
            if model is not None and model not in names:
                listed = ", ".join(map(repr, names)) or "none"
                raise ServerRefused(
                    f"{endpoint.url} does not serve {model!r}; it serves {listed}: set --model-name to one of these"
                )
        if not served:
            raise next(iter(away.values()))
        for endpoint in away:
            self.pool.take_down(endpoint, "it does not answer")
        common = set.intersection(*served)
        if model is None and len(common) != 1:
            choice = ", ".join(map(repr, sorted(common))) or "none"
            raise ServerRefused(f"every endpoint serves these models: {choice}; choose one with --model-name")
        return model or common.pop()

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
        ServerUnavailable if no endpoint comes back in time, ServerRefused if the key or model is no longer accepted.
        """
        attempts = losses = declined = 0
        declined_since = math.inf
        while True:
            async with self._suspects if losses >= SUSPECT_LOSSES else nullcontext(), self.pool.lease() as endpoint:
                result = await self._attempt(endpoint, body, attempts + 1)
                if isinstance(result, Completion):
                    return result
                up = await self.pool.is_up(endpoint)
            if result.busy:
                declined += 1
                declined_since = min(declined_since, time.monotonic())
                self._check_patience(declined_since, endpoint, result)
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
        """Raises ImageFailure if no retry can help, ServerRefused if no other endpoint is left."""
        result = await endpoint.complete(body, attempt)
        if isinstance(result, Trouble):
            others = self.pool.strike(endpoint, result.message, refused=result.refused)
            if result.refused and not others:
                raise ServerRefused(f"{endpoint.url} returned {result.message}: check the API key and the model name")
        return result

    def _check_patience(self, declined_since: float, endpoint: Endpoint, result: Trouble) -> None:
        if time.monotonic() - declined_since > self._server_wait_seconds:
            raise ServerUnavailable(
                f"requests were declined for {self._server_wait_seconds:g} s, last by {endpoint.url}: "
                f"{result.message}; lower --max-concurrency or the server's other load"
            )


async def _served_models(endpoint: Endpoint) -> list[str]:
    try:
        return await endpoint.models()
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        raise ServerRefused(
            f"{endpoint.url} refused the API key: set VLLM_API_KEY (or the block's api_key) to the server's --api-key"
        ) from None
    except openai.NotFoundError:
        raise ServerRefused(f"{endpoint.url} has no /models: a vLLM base URL ends in /v1") from None
    except REQUEST_ERRORS as error:
        raise ServerUnavailable(
            f"no vLLM server at {endpoint.url} ({endpoint.describe(error)}): start one (vllm serve MODEL --port "
            f"{urlsplit(endpoint.url).port or 80}), or set --api-base to your server"
        ) from None
