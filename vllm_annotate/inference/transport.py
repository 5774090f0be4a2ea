"""HTTP to one server: bounded in size and time, without redirects, compression, cookies or retries."""

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Self

import aiohttp
import httpx2

from vllm_annotate.inference.keys import NO_KEY
from vllm_annotate.inference.proxies import proxy_of
from vllm_annotate.storage.masking import MASK, PIECE, masked

MAX_BODY_BYTES = 8 * 1024 * 1024  # of a response; an answer of 32,000 tokens has 0.2 MB, vLLM's metrics 0.3 MB
KEEP_ALIVE_SECONDS = 4  # vLLM closes connections after 5 idle seconds
CONNECT_SECONDS = 30  # a host that drops packets
MOST_SHOWN = 500  # characters of what a server says
MOST_NAMES = 20  # of models, in a message

# What sending a request can raise; aiohttp lets some errors of sockets and parsers through.
REQUEST_ERRORS = (aiohttp.ClientError, OSError, EOFError, ValueError)
# Of these: the connection was refused or broke, or a proxy had none.
LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, aiohttp.ClientHttpProxyError, ConnectionError)


@dataclass(frozen=True)
class Response:
    """A response that was read whole."""

    status: int
    body: bytes
    location: str = ""  # of a redirect, which is never followed
    content_type: str = ""


class Connections:
    """The connections to the server of one base URL. An async context manager, bound to one event loop."""

    def __init__(self, url: str, api_key: str, *, proxied: bool = True) -> None:
        self._url = url
        self.proxy = proxy_of(url) if proxied else None
        self._secrets = [api_key] if api_key and api_key != NO_KEY else []
        self._secrets += self.proxy.secrets if self.proxy else []
        self._headers = {"Accept-Encoding": "identity", "Authorization": f"Bearer {api_key or NO_KEY}"}
        self._session: aiohttp.ClientSession | None = None  # created in the event loop

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send(
        self, method: Literal["GET", "POST"], url: str, body: bytes | None = None, *, timeout_seconds: float
    ) -> Response:
        """Sends one request, once.

        Raises REQUEST_ERRORS: TimeoutError, and ValueError for a body that is over MAX_BODY_BYTES or compressed.
        """
        if self._session is None:
            self._session = self._new_session()
        headers = {"Content-Type": "application/json"} if body is not None else None
        # The time for all of it: a limit between two reads never ends a server that dribbles.
        async with (
            asyncio.timeout(timeout_seconds),
            self._session.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            location, content_type = response.headers.get("Location", ""), response.headers.get("Content-Type", "")
            try:
                content = await _bounded(response)
            except (ValueError, aiohttp.ClientPayloadError):
                if response.status == 200:
                    raise
                content = b""  # the status of an error says enough
            return Response(response.status, content, location, content_type)

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(
                limit=0,  # Pool bounds what is in flight
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                ssl=tls() if self._url.startswith("https") else True,
            ),
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            proxy=self.proxy.url if self.proxy else None,
        )

    def describe(self, error: BaseException) -> str:
        """The root cause of an error on one line, without the API key."""
        if isinstance(error, TimeoutError):
            return "no answer in time"
        cause = root_cause(error)
        return self.shown(f"{type(cause).__name__}: {cause}")

    def shown(self, text: bytes | str) -> str:
        """The start of what a server said, on one line and without secrets: some echo the headers of a request."""
        text = text[: 4 * MOST_SHOWN]
        text = masked(text.decode(errors="replace") if isinstance(text, bytes) else text, self._secrets)
        for secret in self._secrets:
            if len(secret) < PIECE:
                text = text.replace(secret, MASK)
        return " ".join(text.split())[:MOST_SHOWN]

    def listed(self, names: Iterable[str]) -> str:
        """The first of a server's names, for a message."""
        first = list(islice(names, MOST_NAMES + 1))
        texts = [repr(self.shown(name)[:100]) for name in first[:MOST_NAMES]]
        return ", ".join(texts + ["…"] * (len(first) > MOST_NAMES)) or "none"

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()


class OpenAITransport(httpx2.AsyncBaseTransport):
    """Lets the openai client send through the connections of an endpoint."""

    def __init__(self, connections: Connections, timeout_seconds: float) -> None:
        self._connections = connections
        self._timeout_seconds = timeout_seconds

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request of the client."""
        body = await request.aread() or None
        method: Literal["GET", "POST"] = "GET" if request.method == "GET" else "POST"
        response = await self._connections.send(method, str(request.url), body, timeout_seconds=self._timeout_seconds)
        # As bytes, as they may be in any encoding.
        values = {"Content-Type": response.content_type, "Location": response.location}
        headers = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in values.items()]
        return httpx2.Response(response.status, headers=headers, content=response.body, request=request)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise ValueError(f"HTTP {response.status} with Content-Encoding {encoding!r:.40}, although none was accepted")
    too_large = f"HTTP {response.status} with a body over {MAX_BODY_BYTES >> 20} MiB"
    if (response.content_length or 0) > MAX_BODY_BYTES:
        raise ValueError(too_large)
    body = bytearray()
    async for some in response.content.iter_any():
        body += some
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(too_large)
    return bytes(body)


def root_cause(error: BaseException) -> BaseException:
    """The first of a chain of exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def tls() -> ssl.SSLContext:
    """Checks certificates against SSL_CERT_FILE or SSL_CERT_DIR if set, else the usual authorities."""
    return httpx2.create_ssl_context()
