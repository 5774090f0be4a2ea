"""One vLLM server over HTTP: its requests, health and metrics."""

import asyncio
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from openai import AsyncOpenAI

from vllm_annotate.errors import ServerFault, ServerRefused, ServerUnavailable
from vllm_annotate.inference.concurrency import ConcurrencyController
from vllm_annotate.inference.metrics import MetricsCheck, ServerMetrics, read_metrics
from vllm_annotate.inference.responses import Completion, Trouble, own_words, read_response
from vllm_annotate.inference.samples import Sample
from vllm_annotate.inference.transport import (
    LOST,
    REQUEST_ERRORS,
    Connections,
    OpenAITransport,
    root_cause,
)
from vllm_annotate.storage.json_text import json_object, loads

HEALTH_TIMEOUT_SECONDS = 5
MOST_FACTS = 20  # of what a server reports about its version


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
        self.answered_at = 0.0  # monotonic seconds, the last time
        self.troubles = 0  # failed attempts
        self.strikes = 0  # failed attempts in a row
        self.up = asyncio.Event()
        self.up.set()
        self.down_since = 0.0  # monotonic seconds
        self.kept = False  # this run restarts its server: wait for it without limit
        self.lost = ""  # why the run no longer does
        self.refused = False  # that is because its boxes would be wrong
        self.last_look: EndpointSample | None = None
        self.model_roots: dict[str, str | None] = {}  # by served model; empty until it has answered
        self._fixed_limit = connections
        self._completion_tokens = 0
        self._produced = 0  # the same, but an answer whose tokens the server does not count is one
        self._request_seconds = 0.0  # of all answers
        self._timeout_seconds = timeout_seconds
        self._root = url.removesuffix("/v1")
        self._probe: str | None = None  # the URL that shows health, once known
        self._metrics_check = MetricsCheck()
        self._connections = Connections(url, api_key)
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            max_retries=0,  # Inference.ask alone retries
            http_client=httpx2.AsyncClient(
                transport=OpenAITransport(self._connections, HEALTH_TIMEOUT_SECONDS), timeout=None
            ),
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

    async def complete(self, body: bytes, attempt: int, *, counts: bool = True) -> Completion | Trouble:
        """Sends one request; returns its completion, or trouble that a retry may cure.

        `counts`: in the endpoint's figures. Raises ImageFailure if no retry can.
        """
        sent = time.monotonic()
        try:
            # Not through the openai client, which costs several times as much CPU per image.
            url = f"{self.url}/chat/completions"
            response = await self._connections.send("POST", url, body, timeout_seconds=self._timeout_seconds)
        except REQUEST_ERRORS as error:
            said = self._connections.describe(error)
            if isinstance(error, LOST):
                return Trouble("server", said, "lost")
            return Trouble("timeout" if isinstance(error, TimeoutError) else "server", said)
        result = read_response(response, self._connections.shown, attempt)
        if isinstance(result, Trouble) or not counts:
            return result
        self.strikes = 0
        self.answered += 1
        self.answered_at = time.monotonic()
        self._completion_tokens += result.completion_tokens
        self._produced += result.completion_tokens or 1
        self._request_seconds += self.answered_at - sent
        return result

    async def look(self) -> EndpointSample | None:
        """Reads the server's metrics; None if there are none, or none that show the whole endpoint."""
        check = self._metrics_check
        if not check.is_due(time.monotonic()):
            self.last_look = None
            return None
        response = await self._get(f"{self._root}/metrics")
        metrics, now = read_metrics(response) if response is not None else None, time.monotonic()
        check.add(
            now,
            metrics,
            answered=self.answered,
            tokens=self._completion_tokens,
            in_flight=self.in_flight,
            troubles=self.troubles,
        )
        if check.fault and self.controller is not None:
            self.controller.restart(now, f"its metrics are not used: {check.fault}")
        self.last_look = None
        if metrics is not None and not check.fault:
            self.last_look = EndpointSample(now, self.in_flight, metrics)
        return self.last_look

    @property
    def metrics_fault(self) -> str:
        """Why the server's metrics are not used; empty if they are, or if there are none."""
        return self._metrics_check.fault

    async def sample(self) -> Sample | None:
        """The server's state by its metrics, or by its answers if it has none of its own; None for a passing fault."""
        if (look := await self.look()) is None:
            if not (self._metrics_check.fault or self._metrics_check.are_missing):
                return None
            flying, answered = self.in_flight, self.answered
            tokens, seconds = self._produced, self._request_seconds
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
        """Names of the served models; also sets `model_roots`.

        Raises ServerUnavailable if nothing answers, ServerRefused if waiting would not help, each with the remedy.
        """
        try:
            response = await self._client.get(f"{self.url}/models", cast_to=httpx2.Response)
            body = loads(response.content)
            models = body.get("data") if isinstance(body, dict) else None
            if not isinstance(models, list):
                raise ValueError(f"not a list of models: {response.text[:80]!r}")  # noqa: TRY004
        except (openai.OpenAIError, httpx2.HTTPError, *REQUEST_ERRORS) as error:
            raise self._why_no_models(error) from None
        named = [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
        if not named:  # a router whose only server restarts
            raise ServerUnavailable(
                f"{self.url} lists no model: wait until one is loaded, or check the servers behind this address"
            )
        self.model_roots = {model["id"]: model.get("root") for model in named}
        return list(self.model_roots)

    def _why_no_models(self, error: Exception) -> ServerFault:
        cause, shown, words = root_cause(error), self._connections.shown, ""
        if isinstance(error, openai.APIStatusError):
            words = f"HTTP {error.status_code}: {own_words(error.response.content)}"
            location = shown(error.response.headers.get("Location", ""))
            match error.status_code:
                case 401 | 403:
                    return ServerRefused(
                        f"{self.url} refused the API key: set VLLM_API_KEY (or api_key of the block, or of the "
                        "server in a sweep's variant) to the server's --api-key"
                    )
                case 404:
                    return ServerRefused(f"{self.url} has no /models: a vLLM base URL ends in /v1")
                case status if 300 <= status < 400:
                    return ServerRefused(
                        f"{self.url} redirects to {location or 'nowhere'}, and redirects are not followed, as requests "
                        "carry your key and images: set --api-base to the server's own address"
                    )
        elif isinstance(cause, ssl.SSLCertVerificationError):
            return ServerRefused(
                f"{self.url} has a certificate that is not trusted ({shown(cause.verify_message)}): set "
                "SSL_CERT_FILE to the certificate of its authority, or correct the host name"
            )
        elif isinstance(cause, ssl.SSLError):
            reason = shown(cause.reason or str(cause))
            return ServerRefused(f"{self.url} does not speak TLS as this client does ({reason}): is it http://?")
        said = shown(words) or self._connections.describe(error)
        if proxy := self._connections.proxy:
            return ServerUnavailable(
                f"no vLLM server at {self.url} through the proxy {proxy} ({said}): check the server and the proxy, or "
                f"add {urlsplit(self.url).hostname} to no_proxy"
            )
        return ServerUnavailable(
            f"no vLLM server at {self.url} ({said}): start one "
            f"(vllm serve MODEL --port {urlsplit(self.url).port or 80}), or set --api-base to your server"
        )

    async def version(self, model: str) -> dict[str, Any]:
        """The plain values of /version, if any, and the model's root, if the server reports one."""
        said = json_object(await self._get(f"{self._root}/version")) or {}
        said |= {"model_root": root} if (root := self.model_roots.get(model)) else {}
        shown, plain = self._connections.shown, [item for item in said.items() if isinstance(item[1], str | bool)]
        return {shown(name): value if isinstance(value, bool) else shown(value) for name, value in plain[:MOST_FACTS]}

    def listed(self, names: Iterable[str]) -> str:
        """Names of models, for a message."""
        return self._connections.listed(names)

    async def _get(self, url: str) -> bytes | None:
        """The body at a URL; None unless the status is 200."""
        try:
            response = await self._connections.send("GET", url, timeout_seconds=HEALTH_TIMEOUT_SECONDS)
        except REQUEST_ERRORS:
            return None
        return response.body if response.status == 200 else None

    async def close(self) -> None:
        """Closes the connections."""
        await self._connections.close()
