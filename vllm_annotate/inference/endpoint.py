"""One vLLM server over HTTP: its requests, its health, and what its answers and errors mean."""

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

KEEP_ALIVE_SECONDS = 4  # vLLM closes connections that have been idle for 5

# The openai client lets some of its transport's errors through as they are.
REQUEST_ERRORS = (openai.OpenAIError, aiohttp.ClientError, httpx2.HTTPError, OSError, EOFError, ValueError)


@dataclass(frozen=True)
class EndpointSample:
    """What /metrics said, and what the endpoint had in flight at that moment."""

    at: float  # monotonic seconds
    in_flight: int
    metrics: ServerMetrics


class Endpoint:
    """One base URL: its client, its requests in flight, and whether it may get more.

    `limit` is the most that may be in flight: the controller's, if there is one, else as many as `connections`.
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
        self.troubles = 0  # attempts without an answer
        self.strikes = 0  # attempts in a row without an answer
        self.up = asyncio.Event()
        self.up.set()
        self.down_since = 0.0  # monotonic, while it is down
        self.kept = False  # somebody looks after its server and starts it again: no end of patience
        self.lost = ""  # why nobody does any more
        self.last_look: EndpointSample | None = None
        self._fixed_limit = connections
        self._completion_tokens = 0
        self._request_seconds = 0.0  # of all answers
        self._has_metrics: bool | None = None  # None until it was asked
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._root = url.removesuffix("/v1")
        self._probe: str | None = None  # what to ask for health, once known
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None  # of chat completions; made in the event loop
        # No time-outs in the client: its own count between reads, and a server that dribbles would never meet them.
        # max_retries=0: retries live in Inference.ask, nowhere else.
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            max_retries=0,
            timeout=None,
            # A proxy of the environment's stands between machines, never between a machine and itself.
            http_client=DefaultAioHttpClient(timeout=None, trust_env=not is_loopback(url)),
        )

    @property
    def limit(self) -> int:
        """Most requests in flight, for now."""
        return self._fixed_limit if self.controller is None else self.controller.limit

    def reduce(self, why: str) -> None:
        """Halves the limit for good."""
        if self.controller is not None:
            self.controller.reduce(time.monotonic(), why)
        else:
            self._fixed_limit = max(1, min(self._fixed_limit, self.most_in_flight) // 2)

    def take(self) -> None:
        """Counts a request that is about to be sent."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    async def complete(self, body: bytes, attempt: int) -> "Completion | Trouble":
        """The completion of one request, or the trouble that another attempt may end.

        Raises ImageFailure where none can.
        """
        sent = time.monotonic()
        try:
            status, response = await self._post(body)
        except REQUEST_ERRORS as error:
            return Trouble("timeout" if isinstance(error, TimeoutError) else "server", self.describe(error))
        if status >= 300:
            return classify(status, self._in_one_line(f"HTTP {status}: {own_words(response)}"), attempt)
        result = read_completion(response, attempt)
        if isinstance(result, Trouble):  # some gateways send back the headers that they got
            return replace(result, message=self._without_key(result.message))
        self.strikes = 0
        self.answered += 1
        self._completion_tokens += result.completion_tokens
        self._request_seconds += time.monotonic() - sent
        return result

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the response to a chat completion.

        By aiohttp itself: what the openai client does around it costs several times as much, for every image. Raises
        REQUEST_ERRORS; a TimeoutError (an OSError) when it takes too long.
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
        """Reads the server's metrics; None where it has none or does not answer."""
        text = await self._get(f"{self._root}/metrics")
        metrics = read_metrics(text) if text is not None else None
        if metrics is None:
            return None
        self.last_look = EndpointSample(time.monotonic(), self.in_flight, metrics)
        return self.last_look

    async def sample(self) -> Sample | None:
        """How the server does now: by its own metrics, or by its answers where it has none behind a gateway."""
        look = await self.look()
        if look is None and self._has_metrics:
            return None  # for the moment
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
        """Whether the endpoint answers now; behind some gateways there is no /health, and /models tells."""
        for probe in [self._probe] if self._probe else [f"{self._root}/health", f"{self.url}/models"]:
            if await self._get(probe) is not None:
                self._probe = probe
                return True
        return False

    async def models(self) -> list[str]:
        """Names of the served models, whose roots are known from then on. Raises REQUEST_ERRORS."""
        async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
            response = await self._client.get(f"{self.url}/models", cast_to=httpx2.Response)
        body = loads(response.content)
        models = body.get("data") if isinstance(body, dict) else None
        if not isinstance(models, list):
            raise ValueError(f"no list of models but {response.content[:80]!r}")  # noqa: TRY004 - it is the server's
        named = [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
        self.model_roots = {model["id"]: model.get("root") for model in named}
        return list(self.model_roots)

    async def version(self, model: str) -> dict[str, Any]:
        """What /version says, or nothing; and where the server has the model from, if it says so."""
        root = self.model_roots.get(model)
        return (json_object(await self._get(f"{self._root}/version")) or {}) | ({"model_root": root} if root else {})

    async def _get(self, url: str) -> bytes | None:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
                return (await self._client.get(url, cast_to=httpx2.Response)).content
        except REQUEST_ERRORS:
            return None

    def describe(self, error: Exception) -> str:
        """An error in one line, without the key: the server's own words, or else those of the lowest cause."""
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
    """Whether the URL is of this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL."""
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
