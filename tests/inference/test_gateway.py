"""Servers behind a real gateway: restarted, away for good, choosy, several behind one address."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest

from stand_in.gateway import ITS_OWN_404, ITS_OWN_504, ITS_OWN_HEALTH, gateway
from stand_in.process import StandIn
from tests.inference.test_client import body, inference
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


async def test_no_image_fails_while_one_of_two_servers_behind_a_gateway_restarts() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(StandIn.started(*SLOW)) for _ in range(2)]
        url = stack.enter_context(gateway([server.port for server in servers], "proxy_next_upstream off;"))

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
        async with inference(url, server_wait_seconds=60) as client:
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
    assert stand_in.asked()["bad 7"] == 4


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
