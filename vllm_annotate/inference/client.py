"""Request bodies → completions: bounded, retried in one layer, spread over endpoints, patient when they go away."""

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

MAX_ATTEMPTS = 4  # of one image on a server that is healthy
MAX_SERVER_LOSSES = 6  # of one image: a server that dies each time it sees it is not to be blamed for ever
SUSPECT_LOSSES = 2  # from then on it is asked apart from other suspects, lest innocent ones share its end
BACKOFF_SECONDS = (0.25, 8.0)  # first and longest


class Inference:
    """The client of a run: one pool of endpoints and their limits of requests in flight, shared by all chunks.

    `max_concurrency` bounds the requests in flight over all endpoints; "auto" finds a limit for each. Use it as an
    async context manager, within one event loop.
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
        """The name of the model that every endpoint serves: `model` itself, or the only one there is.

        An endpoint that does not answer is left to come back, as long as another does. Raises ServerUnavailable or
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
            await endpoint.is_healthy()  # settles how to ask
            served.append(set(names))
            if model is not None and model not in names:
                listed = ", ".join(map(repr, names)) or "none"
                raise ServerRefused(
                    f"{endpoint.url} does not serve model {model!r} but {listed}: set --model-name to one of these"
                )
        if not served:
            raise next(iter(away.values()))
        for endpoint in away:
            self.pool.take_down(endpoint, "it does not answer")
        common = set.intersection(*served)
        if model is None and len(common) != 1:
            choice = ", ".join(map(repr, sorted(common))) or "none"
            raise ServerRefused(f"the models that every endpoint serves are {choice}: say which with --model-name")
        return model or common.pop()

    def counts(self) -> dict[str, dict[str, Any]]:
        """What each endpoint was given and gave: answers, attempts without one, and its limits with their reasons."""
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
        """What each endpoint says of its version, and of where it has the model from."""
        return {endpoint.url: await endpoint.version(model) for endpoint in self.pool.endpoints}

    async def ask(self, body: bytes) -> Completion:
        """The completion of one request, once an endpoint has room for it.

        Raises ImageFailure (rejected, timeout, server) when the image is at fault or its attempts run out on
        a healthy server, ServerUnavailable when no endpoint came back in time, ServerRefused for a key or model that is
        no longer accepted.
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
        """One request. Raises ImageFailure where no other can do better, ServerRefused where no endpoint is left."""
        result = await endpoint.complete(body, attempt)
        if isinstance(result, Trouble):
            others = self.pool.strike(endpoint, result.message, refused=result.refused)
            if result.refused and not others:
                raise ServerRefused(f"{endpoint.url} answers {result.message}: check the API key and the model name")
        return result

    def _check_patience(self, declined_since: float, endpoint: Endpoint, result: Trouble) -> None:
        if time.monotonic() - declined_since > self._server_wait_seconds:
            raise ServerUnavailable(
                f"declined for {self._server_wait_seconds:g} s, last by {endpoint.url}: {result.message}; "
                "lower --max-concurrency or give the server less other work"
            )


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
