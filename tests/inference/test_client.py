"""Requests over real HTTP against the stand-in: answers, failures of the image, faults of the server."""

import asyncio
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from PIL import Image

from stand_in.process import StandIn
from tests.support.raw_server import Talk, listening
from vllm_annotate.errors import ImageFailure, ServerRefused, ServerUnavailable
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.responses import Completion
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe


def body(caption: str = "a", model: str = "stand-in-qwen2.5-vl", **changes: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), "white").save(buffer, "JPEG")
    request = RequestTemplate(Recipe(), FAMILIES["qwen2.5-vl"], model)
    whole = request.body(caption, PreparedImage(buffer.getvalue(), 56, 56, 56, 56).url())
    return json.dumps(json.loads(whole) | changes).encode()


@asynccontextmanager
async def inference(
    *servers: str, max_concurrency: int | Literal["auto"] = 8, **options: Any
) -> AsyncIterator[Inference]:
    async with Inference(
        [f"{server}/v1" for server in servers], "none", max_concurrency=max_concurrency, **options
    ) as client:
        yield client


@asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[str]:
    """A server that sends these bytes; yields its base URL."""
    async with listening(talk) as port:
        yield f"http://127.0.0.1:{port}"


async def test_an_answer_comes_with_its_tokens(stand_in: StandIn) -> None:
    async with inference(stand_in.url) as client:
        completion = await client.ask(body())
    assert json.loads(completion.text)["objects"] == []
    assert completion.completion_tokens > 0
    assert completion.attempts == 1


@pytest.mark.parametrize("kind", ["500", "503", "reset", "abort"])
async def test_a_passing_fault_is_retried(stand_in: StandIn, kind: str) -> None:
    stand_in.set_faults({"kind": kind, "count": 2})
    async with inference(stand_in.url) as client:
        completion = await client.ask(body())
    assert completion.text.startswith("{")
    assert stand_in.asked() == {"a": 3}


@pytest.mark.parametrize(
    ("fault", "kind", "asked"),
    [
        ({"kind": "400"}, "rejected", 1),
        ({"kind": "500"}, "server", 4),
        ({"kind": "stall"}, "timeout", 4),
    ],
)
async def test_a_lasting_fault_of_a_healthy_server_is_the_images_failure(
    stand_in: StandIn, fault: dict[str, object], kind: str, asked: int
) -> None:
    stand_in.set_faults(fault | {"count": None})
    async with inference(stand_in.url, request_timeout_seconds=0.5) as client:
        with pytest.raises(ImageFailure) as caught:
            await client.ask(body())
    assert (caught.value.kind, caught.value.attempts) == (kind, asked)
    assert stand_in.asked() == {"a": asked}


async def test_an_answer_that_reached_max_tokens_has_finish_reason_length(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "length"})
    async with inference(stand_in.url) as client:
        assert (await client.ask(body())).finish_reason == "length"


async def test_the_servers_message_is_in_the_failure(stand_in: StandIn) -> None:
    async with inference(stand_in.url) as client:
        with pytest.raises(ImageFailure, match="response_format json_schema needs a schema"):
            await client.ask(body(response_format={"type": "json_schema"}))


async def test_a_server_that_keeps_declining_is_given_up_with_a_remedy(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "503", "count": None})
    async with inference(stand_in.url, server_wait_seconds=1) as client:
        with pytest.raises(ServerUnavailable, match=r"declined for 1 s.*max-concurrency"):
            await client.ask(body())


async def test_a_model_that_is_no_longer_served_stops_the_run_at_once() -> None:
    with StandIn.started() as server:
        async with inference(server.url) as client:
            await client.check(None)
            server.kill()
            server.options = ("--model", "another")
            await asyncio.to_thread(server.start)
            with pytest.raises(ServerRefused, match=r"HTTP 404.*serve 'stand-in-qwen2.5-vl'; it serves 'another'"):
                await client.ask(body())


async def test_a_key_that_is_no_longer_accepted_stops_the_run_at_once() -> None:
    with StandIn.started("--api-key", "old") as server:
        async with Inference([f"{server.url}/v1"], "old", max_concurrency=1) as client:
            await client.check(None)
            server.kill()
            server.options = ("--api-key", "new")
            await asyncio.to_thread(server.start)
            with pytest.raises(ServerRefused, match=r"HTTP 401.*set VLLM_API_KEY"):
                await client.ask(body())


async def test_requests_wait_for_a_server_that_comes_back(stand_in: StandIn) -> None:
    async with inference(stand_in.url, server_wait_seconds=60) as client:
        await client.ask(body("before"))
        stand_in.kill()
        waiting = [asyncio.create_task(client.ask(body(f"{n}"))) for n in range(20)]
        await asyncio.sleep(1)
        assert not any(task.done() for task in waiting)
        await asyncio.to_thread(stand_in.start)
        answers = await asyncio.gather(*waiting)
    assert len(answers) == 20
    assert set(stand_in.asked()) == {f"{n}" for n in range(20)}


async def test_an_outage_and_its_end_are_logged(stand_in: StandIn) -> None:
    messages: list[str] = []
    async with inference(stand_in.url, server_wait_seconds=60, warn=messages.append) as client:
        stand_in.kill()
        waiting = asyncio.create_task(client.ask(body()))
        await asyncio.sleep(1)
        await asyncio.to_thread(stand_in.start)
        await waiting
        assert client.counts()[f"{stand_in.url}/v1"]["answered"] == 1
    assert f"{stand_in.url}/v1 is down: it does not answer; waiting for it for up to 60 s" in messages[0]
    assert "is back after" in messages[1]


async def test_an_endpoint_that_is_down_at_the_start_does_not_stop_the_others(stand_in: StandIn, nobody: str) -> None:
    messages: list[str] = []
    async with inference(nobody, stand_in.url, warn=messages.append) as client:
        model = await client.check(None)
        versions = await client.versions(model)
        assert (await client.ask(body())).attempts == 1
    assert versions[f"{nobody}/v1"] == {}
    assert versions[f"{stand_in.url}/v1"]["version"]
    assert messages == [f"{nobody}/v1 is down: it does not answer; the others take its requests"]


async def test_a_server_that_stays_down_is_given_up_after_the_wait(stand_in: StandIn) -> None:
    async with inference(stand_in.url, server_wait_seconds=1) as client:
        stand_in.kill()
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"no answer from http.*all answers so far are saved"):
            await client.ask(body())
        assert time.monotonic() - started < 10
        with pytest.raises(ServerUnavailable):  # and the next one does not wait again
            await asyncio.wait_for(client.ask(body()), 0.5)


async def test_no_more_requests_are_in_flight_than_allowed(stand_in: StandIn) -> None:
    async with inference(stand_in.url, max_concurrency=5) as client:
        await asyncio.gather(*(client.ask(body(f"{n}")) for n in range(60)))
    assert stand_in.most_at_once() == 5


async def test_endpoints_share_the_requests_and_take_over_for_each_other(stand_in: StandIn) -> None:
    with StandIn.started() as other:
        async with inference(stand_in.url, other.url, server_wait_seconds=5) as client:
            await asyncio.gather(*(client.ask(body(f"{n}")) for n in range(40)))
            shares = [sum(server.asked().values()) for server in (stand_in, other)]
            assert min(shares) >= 10
            other.kill()
            await asyncio.gather(*(client.ask(body(f"more {n}")) for n in range(40)))
    assert sum(text.startswith("more") for text in stand_in.asked()) == 40


@pytest.mark.parametrize("kind", ["500", "503", "404", "401", "stall"])
async def test_an_endpoint_that_only_fails_does_not_attract_traffic(stand_in: StandIn, kind: str) -> None:
    with StandIn.started() as broken:
        broken.set_faults({"kind": kind, "count": None})
        async with inference(stand_in.url, broken.url, server_wait_seconds=30, request_timeout_seconds=1) as client:
            answers = await asyncio.gather(*(client.ask(body(f"{n}")) for n in range(100)))
        assert len(answers) == 100
        assert sum(broken.asked().values()) < 30


async def test_an_image_that_crashes_servers_does_not_fail_others(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "crash", "count": None, "match": "poison"})
    dead = asyncio.Event()

    async def revive() -> None:
        while not dead.is_set():
            if not await asyncio.to_thread(stand_in.answers):
                await asyncio.to_thread(stand_in.start)
                stand_in.set_faults({"kind": "crash", "count": None, "match": "poison"})
            await asyncio.sleep(0.05)

    reviving = asyncio.create_task(revive())
    async with inference(stand_in.url, max_concurrency=12, server_wait_seconds=60) as client:
        captions = ["poison", *(f"innocent {n}" for n in range(11))]
        results = await asyncio.gather(*(client.ask(body(text)) for text in captions), return_exceptions=True)
    dead.set()
    await reviving
    assert isinstance(results[0], ImageFailure)
    assert results[0].kind == "server"
    assert all(isinstance(result, Completion) for result in results[1:])


@pytest.mark.long
async def test_a_server_that_dribbles_is_timed_out() -> None:
    async def dribble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.05)

    impatient: dict[str, Any] = {"request_timeout_seconds": 0.3, "server_wait_seconds": 1}
    async with raw_server(dribble) as url, inference(url, **impatient) as client:
        started = time.monotonic()
        with pytest.raises((ImageFailure, ServerUnavailable)):
            await client.ask(body())
        assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "raw",
    [
        b"hello, I am no web server\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"data": ["a"]}',
    ],
)
async def test_any_response_raises_only_our_errors(raw: bytes) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        with contextlib.suppress(OSError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async with raw_server(talk) as url, inference(url, server_wait_seconds=0.5) as client:
        with pytest.raises((ServerUnavailable, ServerRefused)):
            await client.check(None)
        with pytest.raises((ImageFailure, ServerUnavailable)):
            await client.ask(body())


async def test_a_key_that_the_server_echoes_is_hidden(stand_in: StandIn) -> None:
    async with Inference([f"{stand_in.url}/v1"], "sesame", max_concurrency=1, server_wait_seconds=0.1) as client:
        with pytest.raises(ServerUnavailable) as caught:
            await client.ask(body(model="sesame"))
    assert "The model `***` does not exist" in str(caught.value)


async def test_the_model_is_found_or_refused_by_name(stand_in: StandIn, nobody: str) -> None:
    async with inference(stand_in.url) as client:
        assert await client.check(None) == "stand-in-qwen2.5-vl"
        assert await client.check("stand-in-qwen2.5-vl") == "stand-in-qwen2.5-vl"
        with pytest.raises(ServerRefused, match=r"does not serve 'qwen'; it serves 'stand-in-qwen2.5-vl'"):
            await client.check("qwen")
    async with inference(nobody) as client:
        with pytest.raises(ServerUnavailable, match=r"no vLLM server at http.*vllm serve MODEL"):
            await client.check(None)


async def test_a_wrong_key_is_refused_with_the_variable_to_set() -> None:
    with StandIn.started("--api-key", "secret") as server:
        async with inference(server.url) as client:
            with pytest.raises(ServerRefused, match="set VLLM_API_KEY"):
                await client.check(None)
        async with Inference([f"{server.url}/v1"], "secret", max_concurrency=1) as client:
            assert (await client.ask(body())).text


async def test_proxies_from_the_environment_are_not_used_for_this_machine(
    stand_in: StandIn, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", nobody)
    async with inference(stand_in.url) as client:
        assert await client.check(None) == "stand-in-qwen2.5-vl"
        assert (await client.ask(body())).text
