"""Servers behind a real gateway: restarted, away for good, choosy, several behind one address."""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest

from stand_in.gateway import ITS_OWN_404, ITS_OWN_504, ITS_OWN_HEALTH, gateway
from stand_in.process import StandIn
from tests.inference.test_client import body, inference, raw_server
from vllm_annotate.errors import ImageFailure, ServerRefused, ServerUnavailable
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.responses import Completion

SLOW = ("--canned", "--slots", "8", "--prefill-seconds", "0.1")  # 80 answers a second
pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (nginx-light)")


async def ask_all(client: Inference, count: int, meanwhile: Callable[[], Awaitable[None]]) -> int:
    """Asks for `count` images while something happens; returns how many were answered. Raises what failed."""
    asking = asyncio.gather(*(client.ask(body(f"{number}")) for number in range(count)))
    await meanwhile()
    answers: list[Completion] = await asking
    return len(answers)


@pytest.mark.parametrize("more", [(), (ITS_OWN_HEALTH,), (ITS_OWN_HEALTH, ITS_OWN_404), (ITS_OWN_HEALTH, ITS_OWN_504)])
async def test_no_image_fails_while_the_server_behind_a_gateway_restarts(more: tuple[str, ...]) -> None:
    with StandIn.started(*SLOW) as server, gateway([server.port], *more) as url:

        async def restart() -> None:
            await asyncio.sleep(0.3)
            server.kill()
            await asyncio.sleep(4)  # four attempts of an image take less
            await asyncio.to_thread(server.start)

        async with inference(url, max_concurrency=16, server_wait_seconds=60) as client:
            assert await ask_all(client, 60, restart) == 60


def reply(status: str, content: bytes, more: str = "") -> bytes:
    head = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(content)}"]
    return "\r\n".join([*head, *([more] if more else []), "", ""]).encode() + content


def talking(respond: Callable[[bytes], bytes | None]) -> Callable[..., Awaitable[None]]:
    """What a server does that sends one response a connection, given the head of the request; None resets it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if length := re.search(rb"(?i)content-length: (\d+)", head):
                await reader.readexactly(int(length[1]))
            if (response := respond(head)) is None:
                writer.transport.abort()
                return
            writer.write(response)
            await writer.drain()
        writer.close()

    return talk


MODELS = reply("200 OK", b'{"data": [{"id": "m"}]}')
ANSWER = reply("200 OK", b'{"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}]}')
OF_OPENAI = b'{"error": {"message": "No deployment of m", "type": "None", "code": "404"}}'  # LiteLLM
OUTAGES = {
    "closes": b"",
    "resets": None,
    "breaks off": ANSWER[:-10],
    "breaks off chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    "502 breaks off": reply("502 Bad Gateway", b"<html>")[:-3],
    "502 compressed": reply("502 Bad Gateway", b"\x1f\x8b", "Content-Encoding: gzip"),
    "502 too large": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 900000000\r\n\r\n",
    "504 at once": reply("504 Gateway Timeout", b""),
    "503 of Envoy": reply("503 Service Unavailable", b"no healthy upstream"),
    "page": reply("200 OK", b"<html>We are back soon</html>"),
    "page in JSON": reply("200 OK", b'{"status": "maintenance"}'),
    "404 of Kong": reply("404 Not Found", b'{"message": "no Route matched with those values"}'),
    "404 of OpenAI's format": reply("404 Not Found", OF_OPENAI),
    "404 of the models too": reply("404 Not Found", OF_OPENAI),
    "no model listed": reply("404 Not Found", OF_OPENAI),
    "error in 200": reply("200 OK", b'{"error": {"message": "Bad gateway", "code": 502}}'),
}


REFUSALS = {
    reply("401 Unauthorized", b"who are you?"): "check the API key",
    reply("403 Forbidden", b""): "what the gateway allows",
    reply("402 Payment Required", b'{"error": {"message": "no credit"}}'): "check the account of the API key",
    reply("407 Proxy Authentication Required", b""): "check the proxy",
    reply("302 Found", b"", "Location: http://sso.example/login"): "redirects to http://sso.example/login.*--api-base",
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_gateway_that_refuses_every_chat_stops_the_run_with_the_remedy(refusal: bytes) -> None:
    """Although it shows its models."""

    async with (
        raw_server(talking(lambda head: MODELS if head.startswith(b"GET") else refusal)) as url,
        inference(url) as client,
    ):
        await client.check("m")
        results = await asyncio.gather(*(client.ask(body(f"{n}")) for n in range(4)), return_exceptions=True)
    assert {type(result) for result in results} == {ServerRefused}
    assert re.search(REFUSALS[refusal], str(results[0]))


class Outage:
    """A gateway that calls itself healthy, whose server is away for some requests."""

    def __init__(self, kind: str) -> None:
        self.kind, self.left = kind, 0

    def respond(self, head: bytes) -> bytes | None:
        if b"/models" in head and self.left and self.kind == "404 of the models too":
            return reply("404 Not Found", OF_OPENAI)
        if b"/models" in head and self.left and self.kind == "no model listed":
            return reply("200 OK", b'{"data": []}')
        if head.startswith(b"GET"):
            return MODELS
        response = OUTAGES[self.kind] if self.left else ANSWER
        self.left = max(0, self.left - 1)
        return response


async def test_no_image_fails_during_an_outage_of_any_kind_behind_a_healthy_gateway() -> None:
    async def last(kind: str) -> list[BaseException | str]:
        outage = Outage(kind)
        async with raw_server(talking(outage.respond)) as url, inference(url, server_wait_seconds=60) as client:
            await client.check("m")
            outage.left = 3 * 5  # an attempt more than an image has
            results = await asyncio.gather(*(client.ask(body(f"{n}")) for n in range(3)), return_exceptions=True)
            return [result.text if isinstance(result, Completion) else result for result in results]

    results = await asyncio.gather(*map(last, OUTAGES))
    assert dict(zip(OUTAGES, results, strict=True)) == dict.fromkeys(OUTAGES, ["{}"] * 3)


async def test_an_outage_of_any_kind_ends_with_its_words_and_a_remedy_after_the_wait() -> None:
    async def last(kind: str) -> str:
        outage = Outage(kind)
        async with raw_server(talking(outage.respond)) as url, inference(url, server_wait_seconds=1) as client:
            await client.check("m")
            outage.left = 1_000_000
            with pytest.raises(ServerUnavailable, match=r"declined for 1 s.*check the servers behind") as caught:
                await client.ask(body())
            return str(caught.value)

    said = dict(zip(OUTAGES, await asyncio.gather(*map(last, OUTAGES)), strict=True))
    assert all(kind[:3] in text for kind, text in said.items() if kind[:3].isdigit())
    assert "We are back soon" in said["page"]
    assert "No deployment of m" in said["404 of OpenAI's format"]


async def test_a_connection_that_breaks_for_one_image_alone_is_that_images_failure(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "reset", "count": None, "match": "bad"})
    async with inference(stand_in.url, server_wait_seconds=1) as client:
        asked = [client.ask(body(text)) for text in ("bad", "good", "better")]
        bad, *good = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(result, Completion) for result in good)
    assert isinstance(bad, ImageFailure)
    assert bad.kind == "server"
    assert bad.attempts >= 2


async def test_a_server_that_is_healthy_but_answers_nobody_is_no_images_failure(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "stall", "count": None})
    async with inference(stand_in.url, max_concurrency=4, request_timeout_seconds=0.2) as client:
        results = await asyncio.gather(*(client.ask(body(f"{n}")) for n in range(8)), return_exceptions=True)
    assert {type(result) for result in results} == {ServerUnavailable}
    assert "healthy but answers no request in time: restart it" in str(results[0])


async def test_a_decline_long_ago_does_not_end_a_request_that_was_accepted_since(stand_in: StandIn) -> None:
    stand_in.set_faults(
        {"kind": "503"}, {"kind": "stall", "seconds": 30}, {"kind": "503"}, {"kind": "stall", "seconds": 30}
    )
    async with inference(stand_in.url, request_timeout_seconds=1, server_wait_seconds=1) as client:
        assert (await client.ask(body())).attempts == 3


@pytest.mark.parametrize("more", ["", ITS_OWN_504])
async def test_no_image_fails_while_one_of_two_servers_behind_a_gateway_restarts(more: str) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(StandIn.started(*SLOW)) for _ in range(2)]
        url = stack.enter_context(gateway([server.port for server in servers], "proxy_next_upstream off;", more))

        async def restart_each() -> None:
            for server in servers:
                await asyncio.sleep(0.3)
                server.kill()
                await asyncio.sleep(2)
                await asyncio.to_thread(server.start)

        async with inference(url, max_concurrency=16, server_wait_seconds=60) as client:
            assert await ask_all(client, 400, restart_each) == 400


@pytest.mark.parametrize(("more", "said"), [((ITS_OWN_HEALTH,), "HTTP 502"), ((ITS_OWN_HEALTH, ITS_OWN_404), "404")])
async def test_a_server_that_stays_away_behind_a_gateway_is_given_up_after_the_wait(
    stand_in: StandIn, more: tuple[str, ...], said: str
) -> None:
    with gateway([stand_in.port], *more) as url:
        async with inference(url, server_wait_seconds=1) as client:
            await client.ask(body())
            stand_in.kill()
            started = time.monotonic()
            with pytest.raises(ServerUnavailable, match=rf"declined for 1 s.*{said}.*servers behind this address"):
                await client.ask(body())
            assert 1 < time.monotonic() - started < 10


async def test_a_request_that_outlasts_the_gateways_patience_is_that_images_failure(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "stall", "seconds": 30, "count": None, "match": "endless"})
    with gateway([stand_in.port], patience="300ms") as url:
        async with inference(url, server_wait_seconds=2) as client:
            over = asyncio.Event()

            async def keep_asking() -> None:
                while not over.is_set():
                    await client.ask(body("quick"))
                    await asyncio.sleep(0.01)

            others = asyncio.create_task(keep_asking())
            with pytest.raises(ImageFailure) as caught:
                await client.ask(body("endless"))
            over.set()
            await others
    assert caught.value.kind == "timeout"
    assert "HTTP 504" in caught.value.message


@pytest.mark.parametrize("kind", ["firewall", "401", "404"])
async def test_a_request_that_alone_is_refused_is_that_images_failure(stand_in: StandIn, kind: str) -> None:
    stand_in.set_faults({"kind": kind, "count": None, "match": "bad"})
    async with inference(stand_in.url) as client:
        asked = [client.ask(body(f"bad {n}" if n == 7 else f"{n}")) for n in range(30)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert await client.ask(body("after"))
    failures = [result for result in results if isinstance(result, BaseException)]
    assert [type(failure) for failure in failures] == [ImageFailure]
    assert isinstance(failures[0], ImageFailure)
    assert failures[0].kind == "rejected"
    assert 4 <= stand_in.asked()["bad 7"] <= 5  # a 404 before the first answer could be a gateway's


async def test_a_gateway_that_begins_to_refuse_every_image_stops_the_run(stand_in: StandIn) -> None:
    async with inference(stand_in.url) as client:
        await client.ask(body("before"))
        stand_in.set_faults({"kind": "firewall", "count": None})
        asked = [client.ask(body(f"{n}")) for n in range(8)]
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(result) for result in results} == {ServerRefused}
    assert "403 Forbidden" in str(results[0])


@pytest.mark.alone
@pytest.mark.parametrize("more", ["", "location = /metrics { proxy_pass http://127.0.0.1:PORT; }"])
async def test_auto_finds_the_limit_of_several_servers_behind_one_address(more: str) -> None:
    """Whether /metrics is that of another server each time, or always of one."""
    with ExitStack() as stack:
        servers = [stack.enter_context(StandIn.started(*SLOW)) for _ in range(4)]
        more = more.replace("PORT", str(servers[0].port))
        url = stack.enter_context(gateway([server.port for server in servers], more))
        said: list[str] = []
        async with inference(url, max_concurrency="auto", warn=said.append) as client:
            await asyncio.gather(*(client.ask(body(f"{number}")) for number in range(1500)))
            limit = client.pool.limit
    assert limit >= 24, "of 32 slots; with the metrics of one server it would stay at 4"
    assert len(said) == 1
    assert "/metrics is not used, and the limit follows the answers" in said[0]
