"""One vLLM server over HTTP: its requests, health and metrics."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from vllm_annotate.inference.concurrency import ConcurrencyController, Sample
from vllm_annotate.inference.keys import NO_KEY
from vllm_annotate.inference.metrics import ServerMetrics, read_metrics
from vllm_annotate.inference.responses import Completion, Trouble, classify, lowest_cause, own_words, read_completion
from vllm_annotate.storage.json_text import json_object, loads

HEALTH_TIMEOUT_SECONDS = 5

KEEP_ALIVE_SECONDS = 4  # vLLM closes connections after 5 idle seconds

# The openai client lets some errors of its transport through unwrapped.
REQUEST_ERRORS = (openai.OpenAIError, aiohttp.ClientError, httpx2.HTTPError, OSError, EOFError, ValueError)


@dataclass(frozen=True)
class EndpointSample:
    """The metrics of a server, and the requests in flight at that moment."""

    at: float  # monotonic seconds
    in_flight: int
    metrics: ServerMetrics


class Endpoint:
    """One base URL: its client, its requests in flight, and its limit.

    Without a controller, the limit is `connections`.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        timeout_seconds: float,
        connections: int,
        controller: ConcurrencyController | None = None,
    ) -> None:
        self.url = url
        self.controller = controller
        self.in_flight = 0
        self.most_in_flight = 0
        self.answered = 0
        self.troubles = 0  # failed attempts
        self.strikes = 0  # failed attempts in a row
        self.up = asyncio.Event()
        self.up.set()
        self.down_since = 0.0  # monotonic seconds
        self.kept = False  # this run restarts its server: wait for it without limit
        self.lost = ""  # why the run no longer does
        self.last_look: EndpointSample | None = None
        self._fixed_limit = connections
        self._completion_tokens = 0
        self._request_seconds = 0.0  # of all answers
        self._has_metrics: bool | None = None  # None before the first look
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._root = url.removesuffix("/v1")
        self._probe: str | None = None  # the URL that shows health, once known
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None  # for chat completions; created in the event loop
        # No timeouts in the client: they apply between reads, so a server that sends slowly never reaches them.
        # max_retries=0: Inference.ask alone retries.
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            max_retries=0,
            timeout=None,
            # Proxies from the environment are not for localhost.
            http_client=DefaultAioHttpClient(timeout=None, trust_env=not is_loopback(url)),
        )

    @property
    def limit(self) -> int:
        """Current maximum of requests in flight."""
        return self._fixed_limit if self.controller is None else self.controller.limit

    def reduce(self, why: str) -> None:
        """Halves the limit for good."""
        if self.controller is not None:
            self.controller.reduce(time.monotonic(), why)
        else:
            self._fixed_limit = max(1, min(self._fixed_limit, self.most_in_flight) // 2)

    def take(self) -> None:
        """Counts a request as in flight."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    async def complete(self, body: bytes, attempt: int) -> "Completion | Trouble":
        """Sends one request; returns its completion, or trouble that a retry may cure.

        Raises ImageFailure if no retry can.
        """
        sent = time.monotonic()
        try:
            status, response = await self._post(body)
        except REQUEST_ERRORS as error:
            return Trouble("timeout" if isinstance(error, TimeoutError) else "server", self.describe(error))
        if status >= 300:
            return classify(status, self._in_one_line(f"HTTP {status}: {own_words(response)}"), attempt)
        result = read_completion(response, attempt)
        if isinstance(result, Trouble):  # some gateways echo the request's headers
            return replace(result, message=self._without_key(result.message))
        self.strikes = 0
        self.answered += 1
        self._completion_tokens += result.completion_tokens
        self._request_seconds += time.monotonic() - sent
        return result

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the response to a chat completion.

        Uses aiohttp directly: the openai client costs several times as much CPU per image. Raises REQUEST_ERRORS, among
        them TimeoutError.
        """
        if self._session is None:
            self._session = self._new_session()
        async with (
            asyncio.timeout(self._timeout_seconds),
            self._session.post(f"{self.url}/chat/completions", data=body) as response,
        ):
            return response.status, await response.read()

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._api_key}"},
            connector=aiohttp.TCPConnector(
                limit=self._connections,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                ssl=httpx2.create_ssl_context() if self.url.startswith("https") else True,
            ),
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=proxy_of(self.url),
        )

    async def look(self) -> EndpointSample | None:
        """Reads the server's metrics; None if it has none or does not answer."""
        text = await self._get(f"{self._root}/metrics")
        metrics = read_metrics(text) if text is not None else None
        if metrics is None:
            return None
        self.last_look = EndpointSample(time.monotonic(), self.in_flight, metrics)
        return self.last_look

    async def sample(self) -> Sample | None:
        """The server's state by its metrics, or by its answers if a gateway hides them."""
        look = await self.look()
        if look is None and self._has_metrics:
            return None  # a passing fault
        self._has_metrics = look is not None
        if look is None:
            flying, answered = self.in_flight, self.answered
            tokens, seconds = self._completion_tokens, self._request_seconds
            return Sample(time.monotonic(), flying, answered, flying, 0, tokens, seconds, answered, by_requests=True)
        metrics = look.metrics
        return Sample(
            look.at,
            look.in_flight,
            self.answered,
            metrics.running,
            metrics.waiting,
            metrics.generation_tokens,
            metrics.token_gap_seconds,
            metrics.token_gaps,
            metrics.kv_cache_usage,
            metrics.preemptions,
        )

    async def is_healthy(self) -> bool:
        """Whether the endpoint answers now: at /health, or at /models if a gateway has no /health."""
        for probe in [self._probe] if self._probe else [f"{self._root}/health", f"{self.url}/models"]:
            if await self._get(probe) is not None:
                self._probe = probe
                return True
        return False

    async def models(self) -> list[str]:
        """Names of the served models; also sets `model_roots`. Raises REQUEST_ERRORS."""
        async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
            response = await self._client.get(f"{self.url}/models", cast_to=httpx2.Response)
        body = loads(response.content)
        models = body.get("data") if isinstance(body, dict) else None
        if not isinstance(models, list):
            raise ValueError(f"not a list of models: {response.content[:80]!r}")  # noqa: TRY004 - the server's fault
        named = [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
        self.model_roots = {model["id"]: model.get("root") for model in named}
        return list(self.model_roots)

    async def version(self, model: str) -> dict[str, Any]:
        """The content of /version, if any, and the model's root, if the server reports one."""
        root = self.model_roots.get(model)
        return (json_object(await self._get(f"{self._root}/version")) or {}) | ({"model_root": root} if root else {})

    async def _get(self, url: str) -> bytes | None:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
                return (await self._client.get(url, cast_to=httpx2.Response)).content
        except REQUEST_ERRORS:
            return None

    def describe(self, error: Exception) -> str:
        """An error on one line, without the API key: the server's message, or that of the root cause."""
        if isinstance(error, openai.APIStatusError):
            return self._in_one_line(f"HTTP {error.status_code}: {own_words(error.response.content)}")
        if isinstance(error, TimeoutError):
            return "no answer in time"
        cause = lowest_cause(error)
        return self._in_one_line(f"{type(cause).__name__}: {cause}")

    def _in_one_line(self, text: str) -> str:
        return " ".join(self._without_key(text).split())[:500]

    def _without_key(self, text: str) -> str:
        return text if self._api_key == NO_KEY else text.replace(self._api_key, "***")

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()
        if self._session is not None:
            await self._session.close()


def is_loopback(url: str) -> bool:
    """Whether the URL points to this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def proxy_of(url: str) -> str | None:
    """The proxy that the environment sets for a URL."""
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
