"""What the connections to a server do not do: follow, decompress, or read without end."""

import asyncio
import gzip
import json
import re
import resource
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.inference.test_client import body, inference
from tests.support.certificates import certificate, server_context
from tests.support.raw_server import listening
from vllm_annotate.errors import ImageFailure, ServerRefused, ServerUnavailable
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.transport import MAX_BODY_BYTES
from vllm_annotate.serving.probe import port_is_taken_by

MODELS = b'{"object": "list", "data": [{"id": "m"}]}'
ANSWER = b'{"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}]}'


@asynccontextmanager
async def web(
    *chunks: bytes, endless: bytes = b"", tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that sends these bytes to every request, and `endless` until the client leaves; its URL, its heads."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            if length := re.search(rb"(?i)content-length: (\d+)", heads[-1]):
                await reader.readexactly(int(length[1]))
            for chunk in chunks:
                writer.write(chunk)
            while endless:
                writer.write(endless)
                await writer.drain()
            await writer.drain()
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass

    async with listening(talk, tls) as port:
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}", heads


def ok(content: bytes, more: str = "") -> bytes:
    head = ["HTTP/1.1 200 OK", "Content-Type: application/json", "Connection: close", f"Content-Length: {len(content)}"]
    return "\r\n".join([*head, more, ""]).encode() + content


def peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def test_a_body_without_end_is_given_up_within_its_bound() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    async with web(head, endless=b" " * 65_536) as (url, _):
        before = peak_memory_mib()
        async with inference(url, server_wait_seconds=1) as client:
            with pytest.raises(ServerUnavailable, match="a body over 8 MiB"):
                await client.check(None)
            assert not await client.pool.endpoints[0].is_healthy()
            assert await client.pool.endpoints[0].look() is None
            with pytest.raises((ImageFailure, ServerUnavailable)):
                await client.ask(body())
        assert peak_memory_mib() - before < 10 * MAX_BODY_BYTES / 1024 / 1024


async def test_a_large_answer_within_the_bound_is_read() -> None:
    text = b"a" * (MAX_BODY_BYTES - 200)
    async with web(ok(ANSWER.replace(b"{}", text))) as (url, _), inference(url) as client:
        assert (await client.ask(body())).text == text.decode()


async def test_a_compressed_body_is_refused_unread() -> None:
    bomb = gzip.compress(b"\0" * 100_000_000)
    async with web(ok(bomb, "Content-Encoding: gzip\r\n")) as (url, heads), inference(url) as client:
        with pytest.raises(ServerUnavailable, match="Content-Encoding 'gzip', although none was accepted"):
            await client.check(None)
    assert b"accept-encoding: identity" in heads[0].lower()


async def test_names_and_versions_of_a_server_are_bounded_and_have_no_piece_of_the_key() -> None:
    """A server that repeats the key as names and values, in bodies of megabytes."""
    key = "sesame-key-42"
    names = [
        key,
        "m",
        *(f"{number}{key}" + "x" * 100_000 for number in range(9)),
        f"a{key[:7]}",
        "red\x1b[31m",
        *(f"{number}" for number in range(1000)),
    ]
    models = json.dumps({"data": [{"id": name, "root": key * 100} for name in names]}).encode()
    facts = {"version": key, "headers": {"Authorization": key}, "long": "x" * 1_000_000, key: "a", "stand_in": True}
    async with web(ok(models)) as (url, _), Inference([f"{url}/v1"], key, max_concurrency=1) as client:
        said = []
        for model in ("another", None):
            with pytest.raises(ServerRefused) as caught:
                await client.check(model)
            said.append(str(caught.value))
        assert "'m'" in said[0]
        assert await client.check("m") == "m"
    facts |= {"data": [{"id": "m", "root": key}]}
    content = ok(json.dumps(facts).encode())
    async with web(content) as (url, _), Inference([f"{url}/v1"], key, max_concurrency=1) as client:
        await client.check("m")
        version = (await client.versions("m"))[f"{url}/v1"]
    assert version["stand_in"] is True
    said.append(str(version))
    said.append(port_is_taken_by("127.0.0.1", 8000, names, key))
    assert max(map(len, said)) < 3000
    assert not [piece for piece in (key[start : start + 6] for start in range(8)) if piece in "".join(said)]


@pytest.mark.parametrize("data", [[], [7], [{"object": "model"}], [{"id": None}]])
async def test_a_list_without_models_is_no_server_yet(data: list[object]) -> None:
    async with web(ok(json.dumps({"data": data}).encode())) as (url, _), inference(url) as client:
        for model in ("m", None):
            with pytest.raises(ServerUnavailable, match="lists no model: wait until one is loaded"):
                await client.check(model)


@pytest.mark.parametrize("location", ["http://é.example/", "http://\udcff.example/"])
async def test_a_redirect_in_any_encoding_is_named(location: str) -> None:
    moved = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nConnection: close\r\n\r\n"
    async with web(moved.encode("utf-8", "surrogateescape")) as (url, _), inference(url) as client:
        with pytest.raises(ServerRefused, match=r"redirects to http://.*\.example/, and redirects are not followed"):
            await client.check(None)


@pytest.mark.parametrize(
    "endless",
    [b"X: %s\r\n" % (b"a" * 1000), b"X: " + b"a" * 60_000, b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"],
)
async def test_headers_without_end_are_given_up_within_their_bounds(endless: bytes) -> None:
    async with web(b"HTTP/1.1 103 Early Hints\r\n", endless=endless) as (url, _):
        before, started = peak_memory_mib(), time.monotonic()
        async with inference(url, request_timeout_seconds=0.5, server_wait_seconds=0.1) as client:
            assert await client.pool.endpoints[0].look() is None
            with pytest.raises((ImageFailure, ServerUnavailable)):
                await client.ask(body())
        assert peak_memory_mib() - before < 30
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_refused_and_nothing_goes_to_its_target(status: int) -> None:
    async with web(ok(MODELS)) as (target, heads):
        redirect = ok(b"", f"Location: {target}/v1/models\r\n").replace(b"200 OK", b"%d Moved" % status)
        async with web(redirect) as (url, _), Inference([f"{url}/v1"], "sesame-key", max_concurrency=1) as client:
            with pytest.raises(ServerRefused, match=rf"redirects to {target}/v1/models.*set --api-base"):
                await client.check(None)
            assert not await client.pool.endpoints[0].is_healthy()
            with pytest.raises(ServerRefused, match=f"redirects to {target}"):
                await client.ask(body())
    assert heads == []


async def test_a_certificate_is_checked_against_ssl_cert_file_on_this_machine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate(tmp_path)
    async with web(ok(MODELS), tls=server_context(path)) as (url, _):
        async with inference(url) as client:
            with pytest.raises(ServerRefused, match=r"certificate that is not trusted.*set SSL_CERT_FILE"):
                await client.check(None)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        async with inference(url) as client:
            assert await client.check(None) == "m"


async def test_https_to_a_server_that_speaks_http_says_so(stand_in: StandIn) -> None:
    async with inference(stand_in.url.replace("http:", "https:")) as client:
        with pytest.raises(ServerRefused, match="is it http://"):
            await client.check(None)
