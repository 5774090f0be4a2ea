"""Request bodies → completions over HTTP: bounded, retried in one layer, patient with servers that go away."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from flows.errors import ImageFailure, ServerRefused, ServerUnavailable
from flows.json_text import json_object, loads

MAX_ATTEMPTS = 4  # of one image on a server that is healthy
MAX_SERVER_LOSSES = 6  # of one image: a server that dies each time it sees it is not to be blamed for ever
SUSPECT_LOSSES = 2  # from then on it is asked apart from other suspects, lest innocent ones share its end
MAX_STRIKES = 3  # attempts in a row without an answer before an endpoint rests, if there are others
REST_SECONDS = 10
HEALTH_TIMEOUT_SECONDS = 5
HEALTH_INTERVAL_SECONDS = 0.5
BACKOFF_SECONDS = (0.25, 8.0)  # first and longest

# The openai client lets some of its transport's errors through as they are.
REQUEST_ERRORS = (openai.OpenAIError, aiohttp.ClientError, httpx2.HTTPError, OSError, EOFError, ValueError)


@dataclass(frozen=True)
class Completion:
    """An answer; a whole one if its finish_reason is "stop"."""

    text: str
    finish_reason: Literal["stop", "length", "repetition"]
    prompt_tokens: int
    completion_tokens: int
    attempts: int


@dataclass(frozen=True)
class Trouble:
    """An attempt without an answer: why, and what it says about image and server."""

    kind: str  # the failure kind, should the attempts run out: server or timeout
    message: str
    busy: bool = False  # the server declined for load: no attempt is counted
    refused: bool = False  # the server declines whatever it is asked: wrong key or model


class Endpoint:
    """One base URL: its client, its requests in flight, and whether it may get more."""

    def __init__(self, url: str, api_key: str, timeout_seconds: float, connections: int) -> None:
        self.url = url
        self.in_flight = 0
        self.answered = 0
        self.troubles = 0  # attempts without an answer
        self.strikes = 0  # attempts in a row without an answer
        self.up = asyncio.Event()
        self.up.set()
        self.down_since = 0.0  # monotonic, while it is down
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._root = url.removesuffix("/v1")
        self._probe = f"{self._root}/health"
        # No time-outs in the client: its own count between reads, and a server that dribbles would never meet them.
        # max_retries=0: retries live in Inference.ask, nowhere else.
        limits = httpx2.Limits(max_connections=connections + 8, max_keepalive_connections=connections + 8)
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            max_retries=0,
            timeout=None,
            http_client=DefaultAioHttpClient(limits=limits, timeout=None),
        )

    async def post(self, body: bytes) -> bytes:
        """The raw response to a chat completion; ready-made bytes skip the client's own JSON pass, most of its cost.

        Raises REQUEST_ERRORS; a TimeoutError (an OSError) when it takes too long.
        """
        self.in_flight += 1
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._client.post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    content=body,
                    options={"headers": {"Content-Type": "application/json"}},
                )
                return response.content
        finally:
            self.in_flight -= 1

    async def is_healthy(self) -> bool:
        """Whether the endpoint answers its probe now."""
        return await self._get(self._probe) is not None

    async def find_probe(self) -> None:
        """Settles what to ask for health: behind some gateways there is no /health."""
        if not await self.is_healthy():
            self._probe = f"{self.url}/models"

    async def models(self) -> list[str]:
        """Names of the served models. Raises REQUEST_ERRORS."""
        async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
            response = await self._client.get(f"{self.url}/models", cast_to=httpx2.Response)
        body = loads(response.content)
        models = body.get("data") if isinstance(body, dict) else None
        if not isinstance(models, list):
            raise ValueError(f"no list of models but {response.content[:80]!r}")  # noqa: TRY004 - it is the server's
        return [model["id"] for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]

    async def version(self) -> dict[str, Any]:
        """What /version says, or nothing."""
        return json_object(await self._get(f"{self._root}/version")) or {}

    async def _get(self, url: str) -> bytes | None:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
                return (await self._client.get(url, cast_to=httpx2.Response)).content
        except REQUEST_ERRORS:
            return None

    def describe(self, error: Exception) -> str:
        """An error in one line, without the key: the server's own words, or else those of the lowest cause."""
        if isinstance(error, openai.APIStatusError):
            own = error.body.get("message") if isinstance(error.body, dict) else None
            text = f"HTTP {error.status_code}: {own or error.message}"
        elif isinstance(error, TimeoutError):
            text = "no answer in time"
        else:
            cause = lowest_cause(error)
            text = f"{type(cause).__name__}: {cause}"
        return " ".join(text.replace(self._api_key, "***").split())[:500]

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


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


def classify(error: Exception, message: str, attempt: int) -> Trouble:
    """What a failed attempt means; raises ImageFailure where the request itself is at fault."""
    if not isinstance(error, openai.APIStatusError):
        # TimeoutError is ours; openai's APITimeoutError is not asked: its transport files dropped connections there.
        return Trouble("timeout" if isinstance(error, TimeoutError) else "server", message)
    status = error.status_code
    if status in (401, 403, 404):
        return Trouble("server", message, refused=True)
    if status in (408, 409, 425) or status >= 500 or status == 429:
        return Trouble("server", message, busy=status in (429, 503))
    raise ImageFailure("rejected", message, attempt)


def lowest_cause(error: BaseException) -> BaseException:
    """The error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def read_completion(response: bytes, attempt: int) -> Completion | Trouble:
    """The completion in a 200 response.

    Only finish_reason "stop" is whole; "length" and "repetition" (vLLM's stop for loops) are the model's doing. vLLM
    answers 200 with "abort" and half a text when it is stopped, which is the server's trouble.
    """
    try:
        body = loads(response)
        choice = body["choices"][0]
        text, finish_reason = choice["message"]["content"], choice["finish_reason"]
    except (ValueError, LookupError, TypeError):
        return Trouble("server", f"HTTP 200 that is no chat completion: {response[:200]!r}")
    if finish_reason not in ("stop", "length", "repetition") or not isinstance(text, str):
        return Trouble("server", f"an answer with finish_reason {finish_reason!r:.40} is not whole")
    usage = body.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    return Completion(
        text, finish_reason, _count(tokens, "prompt_tokens"), _count(tokens, "completion_tokens"), attempt
    )


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
