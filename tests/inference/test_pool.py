"""Several endpoints behind one client: taken down, brought back, with automatic limits."""

import asyncio
import time
from contextlib import ExitStack

import pytest

from stand_in.process import StandIn
from tests.inference.test_client import body, inference
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.responses import Completion

SLOW = ("--canned", "--slots", "8", "--prefill-seconds", "0.1")  # 80 answers a second


async def answers(client: Inference, count: int) -> list[Completion]:
    return await asyncio.gather(*(client.ask(body(f"{n}")) for n in range(count)))


@pytest.mark.alone
async def test_the_limit_of_an_endpoint_is_found() -> None:
    with StandIn.started(*SLOW) as server:
        async with inference(server.url, max_concurrency="auto") as client:
            await answers(client, 500)
            concurrency = client.counts()[f"{server.url}/v1"]["concurrency"]
        assert server.most_at_once() <= 16
    assert concurrency["mode"] == "auto"
    assert concurrency["changes"][0]["limit"] == 8
    assert "of its share" in concurrency["changes"][0]["why"]
    found = next(change for change in concurrency["changes"] if change["why"].startswith("the engine runs"))
    assert 8 <= found["limit"] <= 12
    assert concurrency["limit"] <= 16  # a trial may be under way


@pytest.mark.alone
async def test_endpoints_of_different_sizes_get_what_each_can_run() -> None:
    with (
        StandIn.started(*SLOW) as large,
        StandIn.started("--canned", "--slots", "2", "--prefill-seconds", "0.1") as small,
    ):
        async with inference(large.url, small.url, max_concurrency="auto") as client:
            await answers(client, 600)
            counts = client.counts()
    shares = [counts[f"{server.url}/v1"]["answered"] for server in (large, small)]
    assert 2.5 <= shares[0] / shares[1] <= 6


async def test_a_fixed_number_bounds_all_endpoints_together() -> None:
    with StandIn.started(*SLOW) as one, StandIn.started(*SLOW) as other:
        async with inference(one.url, other.url, max_concurrency=6) as client:
            await answers(client, 60)
            assert client.pool.limit == 6
        assert one.most_at_once() + other.most_at_once() <= 7  # the halves may peak at different times


@pytest.mark.alone
async def test_with_one_of_three_endpoints_killed_no_request_fails_and_a_third_of_the_rate_is_lost() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(StandIn.started(*SLOW)) for _ in range(3)]
        async with inference(*(server.url for server in servers), max_concurrency="auto") as client:
            await answers(client, 300)
            with_three = await rate(client)
            servers[0].kill()
            with_two = await rate(client)
    assert with_two >= 0.55 * with_three


async def rate(client: Inference, count: int = 600) -> float:
    started = time.monotonic()
    assert len(await answers(client, count)) == count
    return count / (time.monotonic() - started)


@pytest.mark.timeout(180)
async def test_no_request_is_lost_while_each_endpoint_in_turn_is_killed_and_revived() -> None:
    """One of three is dead at any time; the kills are real."""
    with ExitStack() as stack:
        servers = [stack.enter_context(StandIn.started(*SLOW)) for _ in range(3)]
        over = asyncio.Event()

        async def kill_in_turn(client: Inference) -> None:
            for turn in range(3):
                victim, endpoint = servers[turn], client.pool.endpoints[turn]
                victim.kill()
                while endpoint.up.is_set():
                    await asyncio.sleep(0.02)
                await asyncio.to_thread(victim.start)
                await endpoint.up.wait()
                while len(await asyncio.to_thread(victim.asked)) < 10:
                    await asyncio.sleep(0.1)
            over.set()

        async def keep_asking(number: int, client: Inference, got: dict[str, int]) -> None:
            asked = 0
            while not over.is_set():
                asked += 1
                await client.ask(body(f"{number}/{asked}"))
                got[f"{number}/{asked}"] = got.get(f"{number}/{asked}", 0) + 1

        got: dict[str, int] = {}
        async with (
            inference(*(server.url for server in servers), max_concurrency="auto") as client,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(kill_in_turn(client))
            for number in range(48):
                group.create_task(keep_asking(number, client, got))
    assert set(got.values()) == {1}
    assert len(got) > 150


async def test_auto_stays_within_the_connections_that_a_process_can_have() -> None:
    with StandIn.started(*SLOW) as one, StandIn.started(*SLOW) as other:
        async with inference(one.url, other.url, max_concurrency="auto", most_connections=6) as client:
            await answers(client, 200)
            assert client.pool.limit == 6
        assert one.most_at_once() + other.most_at_once() <= 8  # the halves may peak at different times


async def test_a_request_that_is_cancelled_in_the_queue_gives_up_its_turn(stand_in: StandIn) -> None:
    async with inference(stand_in.url, max_concurrency=1) as client:
        tasks = [asyncio.create_task(client.ask(body(f"{n}"))) for n in range(20)]
        await asyncio.sleep(0.03)
        for task in tasks[1::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert client.pool.in_flight == 0
        assert (await client.ask(body("after"))).text
    assert sum(isinstance(result, Completion) for result in results) >= 10


async def test_a_server_without_metrics_is_used_too() -> None:
    with StandIn.started("--canned", "--no-metrics") as server:
        async with inference(server.url, max_concurrency="auto") as client:
            assert len(await answers(client, 200)) == 200
