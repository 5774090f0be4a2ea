"""Request bodies → completions over HTTP: bounded, retried in one layer, patient with servers that go away."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import openai
import orjson
from openai import AsyncOpenAI, DefaultAioHttpClient

from flows.errors import ImageFailure, ServerRefused, ServerUnavailable

MAX_ATTEMPTS = 4  # of one image on a server that is healthy
MAX_SERVER_LOSSES = 10  # of one image: a server that dies each time it sees it is not to be blamed for ever
HEALTH_TIMEOUT_SECONDS = 5
HEALTH_INTERVAL_SECONDS = 0.5
BACKOFF_SECONDS = (0.25, 8.0)  # first and longest


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    attempts: int


@dataclass(frozen=True)
class Trouble:
    """An attempt without an answer: why, and what it says about image and server."""

    kind: str  # the failure kind, should the attempts run out: server or timeout
    message: str
    busy: bool = False  # the server declined for load: no attempt is counted


class Endpoint:
    """One base URL: its client, its requests in flight, and whether it was healthy when last looked at."""

    def __init__(self, url: str, api_key: str, timeout_seconds: float, connections: int) -> None:
        self.url = url
        self.in_flight = 0
        self.up = asyncio.Event()
        self.up.set()
        self.down_since = 0.0  # monotonic, while it is down
        split = urlsplit(url)
        self._health_url = f"{split.scheme}://{split.netloc}/health"
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        # max_retries=0: retries live in Inference.ask, nowhere else.
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            max_retries=0,
            timeout=httpx2.Timeout(timeout_seconds, connect=10),
            http_client=DefaultAioHttpClient(limits=limits, timeout=httpx2.Timeout(timeout_seconds, connect=10)),
        )

    async def post(self, body: bytes) -> bytes:
        """The raw response to a chat completion; ready-made bytes skip the client's own JSON pass, most of its cost."""
        self.in_flight += 1
        try:
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
        """Whether /health answers 200 now."""
        try:
            await self._client.get(
                self._health_url, cast_to=httpx2.Response, options={"timeout": HEALTH_TIMEOUT_SECONDS}
            )
        except openai.OpenAIError:
            return False
        return True

    async def models(self) -> list[str]:
        """Names of the served models. Raises openai's errors."""
        return [model.id async for model in self._client.models.list(timeout=HEALTH_TIMEOUT_SECONDS)]

    async def version(self) -> dict[str, Any]:
        """What /version says, or nothing."""
        url = self._health_url.removesuffix("health") + "version"
        try:
            response = await self._client.get(url, cast_to=httpx2.Response, options={"timeout": HEALTH_TIMEOUT_SECONDS})
            answer = orjson.loads(response.content)
        except (openai.OpenAIError, orjson.JSONDecodeError):
            return {}
        return answer if isinstance(answer, dict) else {}

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
    ) -> None:
        self.max_concurrency = max_concurrency
        self._server_wait_seconds = server_wait_seconds
        self._slots = asyncio.Semaphore(max_concurrency)
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

        Raises ServerUnavailable or ServerRefused with the remedy.
        """
        served: set[str] | None = None
        for endpoint in self._endpoints:
            names = await _served_models(endpoint)
            served = set(names) if served is None else served & set(names)
            if model is not None and model not in names:
                raise ServerRefused(
                    f"{endpoint.url} does not serve model {model!r} but {', '.join(map(repr, names)) or 'none'}: "
                    "set --model-name to one of these"
                )
        if model is not None:
            return model
        if not served or len(served) > 1:
            raise ServerRefused(
                f"the endpoints have {len(served or ())} models in common ({', '.join(sorted(served or ()))}): "
                "say which with --model-name"
            )
        return served.pop()

    async def versions(self) -> dict[str, dict[str, Any]]:
        """What each endpoint's /version says."""
        return {endpoint.url: await endpoint.version() for endpoint in self._endpoints}

    async def ask(self, body: bytes) -> Completion:
        """The completion of one request, once a slot is free.

        Raises ImageFailure (rejected, timeout, server, truncated) when the image is at fault or its attempts run out on
        a healthy server, ServerUnavailable when no endpoint came back in time, ServerRefused for a key or model that is
        no longer accepted.
        """
        async with self._slots:
            return await self._ask(body)

    async def _ask(self, body: bytes) -> Completion:
        attempts = losses = 0
        busy_since: float | None = None
        while True:
            endpoint = await self._endpoint()
            try:
                response = await endpoint.post(body)
            except openai.APIError as error:
                trouble = classify(error, attempts + 1)
            else:
                result = read_completion(response, attempts + 1)
                if isinstance(result, Completion):
                    return result
                trouble = result
            if trouble.busy:
                busy_since = busy_since or time.monotonic()
                if time.monotonic() - busy_since > self._server_wait_seconds:
                    raise ServerUnavailable(
                        f"{endpoint.url} declined for {self._server_wait_seconds:g} s: {trouble.message}; "
                        "lower --max-concurrency or give it less other work"
                    )
            elif await self._is_up(endpoint):
                attempts += 1
            else:
                losses += 1
            if attempts >= MAX_ATTEMPTS or losses >= MAX_SERVER_LOSSES:
                raise ImageFailure(trouble.kind, trouble.message, attempts + losses)
            first, longest = BACKOFF_SECONDS
            await asyncio.sleep(random.uniform(0.5, 1) * min(longest, first * 2 ** (attempts + losses)))

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
            await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def _is_up(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint is healthy; if not, it gets no requests until a watcher sees it back."""
        if not endpoint.up.is_set():
            return False
        if await endpoint.is_healthy():
            return True
        if endpoint.up.is_set():
            endpoint.up.clear()
            endpoint.down_since = time.monotonic()
            self._watchers[endpoint.url] = asyncio.create_task(_watch(endpoint))
        return False


async def _watch(endpoint: Endpoint) -> None:
    while not await endpoint.is_healthy():  # noqa: ASYNC110 - there is no event for a server's return
        await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
    endpoint.up.set()


async def _served_models(endpoint: Endpoint) -> list[str]:
    try:
        return await endpoint.models()
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        raise ServerRefused(
            f"{endpoint.url} refuses the API key: set VLLM_API_KEY (or the block's api_key) to the server's --api-key"
        ) from None
    except openai.NotFoundError:
        raise ServerRefused(f"{endpoint.url} has no /models: a vLLM base URL ends in /v1") from None
    except (openai.APIError, ValueError) as error:
        raise ServerUnavailable(
            f"no vLLM answers at {endpoint.url} ({_describe(error)}): start it (vllm serve MODEL --port "
            f"{urlsplit(endpoint.url).port or 80}), or set --api-base to where it runs"
        ) from None


def classify(error: openai.APIError, attempt: int) -> Trouble:
    """What a failed attempt means; raises ImageFailure or ServerRefused where another attempt is no use."""
    message = _describe(error)
    if isinstance(error, openai.APITimeoutError):
        return Trouble("timeout", f"no answer in time: {message}")
    if not isinstance(error, openai.APIStatusError):
        return Trouble("server", message)
    status = error.status_code
    if status in (401, 403, 404):
        raise ServerRefused(f"{error.request.url} answers {message}: check the API key and the model name")
    if status in (429, 503):
        return Trouble("server", message, busy=True)
    if status in (408, 409, 425) or status >= 500:
        return Trouble("server", message)
    raise ImageFailure("rejected", message, attempt)


def _describe(error: Exception) -> str:
    """An error in one line: the server's own words where it has any, else those of the lowest cause."""
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}: {' '.join(error.message.split())[:500]}"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


def read_completion(response: bytes, attempt: int) -> Completion | Trouble:
    """The completion in a 200 response.

    Only finish_reason "stop" is whole. vLLM answers 200 with "abort" and half a text when it is stopped, which is the
    server's trouble; "length" raises ImageFailure of kind truncated.
    """
    try:
        body = _loads(response)
        choice = body["choices"][0]
        text, finish_reason = choice["message"]["content"], choice["finish_reason"]
    except (ValueError, LookupError, TypeError):
        return Trouble("server", f"HTTP 200 that is no chat completion: {response[:200]!r}")
    if finish_reason == "length":
        raise ImageFailure("truncated", "the answer reached max_tokens: raise it in the recipe", attempt)
    if finish_reason != "stop" or not isinstance(text, str):
        return Trouble("server", f"an answer with finish_reason {finish_reason!r:.40} is not whole")
    usage = body.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    return Completion(text, _count(tokens, "prompt_tokens"), _count(tokens, "completion_tokens"), attempt)


def _loads(response: bytes) -> Any:
    try:
        return orjson.loads(response)
    except orjson.JSONDecodeError:  # a lone surrogate: legal for json, and for no UTF-8 file
        return json.loads(json.dumps(json.loads(response), ensure_ascii=False).encode("utf-8", "replace"))


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) else 0
