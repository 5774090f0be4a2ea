"""The automatic limit, against a simulated engine: minutes of a run in a second."""

import asyncio
import statistics
from dataclasses import replace

import pytest

from stand_in.batching import Engine, Timing
from tests.support.simulation import BalancedClient, BusyClient, Client, simulate
from vllm_annotate.inference.concurrency import ConcurrencyController
from vllm_annotate.inference.samples import Sample

RATE = {4: 8, 16: 16, 64: 32, 120: 40, 256: 64}  # capacity → answers a second


def engine(shape: str, capacity: int) -> Timing:
    """An engine that runs `capacity` requests at full speed, and its bottleneck beyond."""
    seconds = capacity / RATE[capacity]
    timing = Timing(
        slots=1024,
        prefill_seconds=0.15 * seconds,
        decode_seconds_per_token=0.85 * seconds / 100,
        completion_tokens=100,
        completion_spread=0.5,
        kv_cache_tokens=10_000_000,
    )
    limits = {"slots": {"slots": capacity}, "compute": {"compute_slots": capacity},
              "cache": {"kv_cache_tokens": 1060 * capacity}}  # fmt: skip
    return replace(timing, **limits[shape])


# Fitted to a real vLLM on two cores: answers a second with 8, 16 and 32 requests in flight; it runs 32 at most.
BUSY = Timing(
    slots=32,
    front_end_seconds=0.008,
    prefill_seconds=0.08,
    decode_seconds_per_token=0.0062,
    slowdown_per_running=0.08,
    completion_tokens=36,
    completion_spread=0.5,
    kv_cache_tokens=10_000_000,
)


def run(timing: Timing, limit: int | ConcurrencyController, seconds: float = 60) -> Client:
    client = Client(timing, limit)
    simulate(client.run(seconds))
    return client


@pytest.mark.parametrize("capacity", RATE)
@pytest.mark.parametrize("shape", ["slots", "compute", "cache"])
def test_a_minute_of_auto_matches_the_best_fixed_limit_without_twice_its_requests(shape: str, capacity: int) -> None:
    timing = engine(shape, capacity)
    best = max(run(timing, round(share * capacity)).answered for share in (1.1, 2))
    client = run(timing, ConcurrencyController())
    assert client.answered >= 0.95 * best
    assert client.most_in_flight <= 2 * capacity


def test_a_minute_on_a_busy_machine_comes_close_to_the_best_fixed_limit() -> None:
    """The rate of seconds says little there: a climb that trusts it ends early, and trials of less are won by luck."""
    shares = []
    for seed in range(8):
        auto, fixed = BusyClient(BUSY, ConcurrencyController(), seed), BusyClient(BUSY, 34, seed)
        shares.append(simulate(auto.run(60)) / simulate(fixed.run(60)))
    assert statistics.median(shares) >= 0.94, shares
    assert min(shares) >= 0.87, shares


@pytest.mark.parametrize("with_metrics", [True, False], ids=["metrics of one in turn", "no metrics"])
@pytest.mark.parametrize("replicas", [4, 8])
@pytest.mark.parametrize("capacity", [4, 16])
def test_behind_a_load_balancer_two_minutes_come_close_to_the_best_fixed_limit(
    capacity: int, replicas: int, with_metrics: bool
) -> None:
    timing, total = engine("slots", capacity), capacity * replicas
    best = simulate(BalancedClient(timing, replicas, round(1.25 * total)).run(120))
    client = BalancedClient(timing, replicas, ConcurrencyController(), with_metrics=with_metrics)
    assert simulate(client.run(120)) >= 0.85 * best
    assert client.most_in_flight <= 3 * total


@pytest.mark.parametrize("shape", ["slots", "compute"])
def test_it_follows_changes_of_the_capacity(shape: str) -> None:
    name = {"slots": "slots", "compute": "compute_slots"}[shape]
    controller = ConcurrencyController()
    client = Client(engine(shape, 64), controller)

    def set_capacity(capacity: int) -> None:
        client.engine.timing = replace(client.engine.timing, **{name: capacity})

    async def story() -> list[int]:
        loop = asyncio.get_running_loop()
        limits: list[int] = []
        for at, capacity in ((60, 24), (120, 96)):
            loop.call_at(at, set_capacity, capacity)
        for at in (59, 119, 239):
            loop.call_at(at, lambda: limits.append(controller.limit))
        await client.run(240)
        return limits

    at_64, at_24, at_96 = simulate(story())
    assert 64 <= at_64 <= 96
    assert 24 <= at_24 <= 48
    assert 96 <= at_96 <= 160


def test_slower_tokens_alone_do_not_keep_it_low() -> None:
    controller = ConcurrencyController()
    client = Client(engine("slots", 64), controller)

    async def story() -> None:
        slower = replace(
            client.engine.timing, decode_seconds_per_token=3 * client.engine.timing.decode_seconds_per_token
        )
        asyncio.get_running_loop().call_at(60, setattr, client.engine, "timing", slower)
        await client.run(180)

    simulate(story())
    assert 64 <= controller.limit <= 96


def test_a_curve_without_a_knee_is_climbed_as_long_as_it_pays() -> None:
    """Like a GPU: each request slows the others a little, and the last slots still gain something."""
    timing = replace(engine("slots", 256), slowdown_per_running=1 / 64)
    controller = ConcurrencyController()
    client = run(timing, controller, 240)
    assert client.answered >= 0.92 * run(timing, 256, 240).answered
    assert controller.limit >= 150


def test_without_metrics_the_pace_of_answers_shows_the_knee() -> None:
    controller = ConcurrencyController()
    client = Client(engine("slots", 16), controller, with_metrics=False)
    simulate(client.run(240))
    assert 16 <= controller.limit <= 32
    assert client.answered >= 0.9 * run(engine("slots", 16), 18, 240).answered


def test_a_client_with_too_few_requests_learns_nothing() -> None:
    controller = ConcurrencyController()
    client = Client(engine("slots", 64), controller)
    client.FEED_SECONDS = 2.0
    simulate(client.run(60))
    assert controller.limit == 4


def test_every_change_has_its_reason() -> None:
    controller = ConcurrencyController()
    run(engine("slots", 16), controller)
    assert [change.limit for change in controller.changes][:4] == [8, 16, 32, 17]
    assert controller.changes[3].why == "the engine runs 16 requests"
    assert controller.changes[0].at < controller.changes[1].at


def test_running_out_of_memory_halves_it_permanently() -> None:
    controller = ConcurrencyController()
    run(engine("slots", 64), controller)
    before = controller.limit
    controller.reduce(60, "out of memory")
    assert controller.limit == before // 2
    client = Client(engine("slots", 64), controller)
    simulate(client.run(60))
    assert controller.limit <= before // 2


def test_a_restarted_server_that_counts_from_zero_is_handled() -> None:
    controller = ConcurrencyController()
    client = Client(engine("slots", 16), controller)

    async def story() -> None:
        again = Engine(engine("compute", 64), "simulated")
        asyncio.get_running_loop().call_at(300, setattr, client, "engine", again)
        await client.run(480)

    simulate(story())
    assert 48 <= controller.limit <= 110


def test_the_queue_of_other_clients_does_not_lower_the_limit() -> None:
    """Another client keeps 400 requests waiting: the limit must not collapse."""
    controller = ConcurrencyController()
    for tick in range(400):
        at = tick * 0.5
        controller.update(Sample(at, controller.limit, tick, 64, 400, at * 1000, at * 10, at * 1000))
    assert controller.limit == 4


def test_requests_that_wait_for_a_long_step_are_no_full_engine() -> None:
    """The gauges change once a step: one that takes seconds shows the same moment again and again."""
    controller = ConcurrencyController()
    at, tokens = 0.0, 0.0
    while controller.limit < 8:
        at, tokens = at + 0.05, tokens + 5
        controller.update(Sample(at, 4, 0, 4, 0, tokens, tokens / 100, tokens))
    for _ in range(60):
        at += 0.05
        controller.update(Sample(at, 8, 0, 1, 3, tokens, tokens / 100, tokens))
    assert controller.limit == 8


def test_an_engine_that_gets_emptier_is_not_full() -> None:
    controller = ConcurrencyController()
    at, tokens = 0.0, 0.0
    while controller.limit < 8:
        at, tokens = at + 0.05, tokens + 5
        controller.update(Sample(at, 4, 0, 4, 0, tokens, tokens / 100, tokens))
    for running in [6, 5, 5, 4, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 0, 0, 0]:
        at, tokens = at + 0.05, tokens + running
        controller.update(Sample(at, 8, 0, running, 1, tokens, tokens / 100, tokens))
    assert controller.limit == 8
