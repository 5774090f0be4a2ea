"""Canaries over real HTTP: a server whose boxes go wrong is named, and no other."""

import asyncio
import random
from collections.abc import Iterator

import pytest

from stand_in.process import StandIn
from tests.inference.test_client import body
from vllm_annotate.errors import ServerRefused
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.proof.canaries import LARGE, SMALL, CanaryWatch
from vllm_annotate.proof.pointing import Questions
from vllm_annotate.proof.prove import Asker, Prover
from vllm_annotate.proof.scenes import Kind, Space
from vllm_annotate.proof.sight import Sight
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.settings import Recipe

SHIFTED = {"kind": "shift", "count": None}
EVERY, MODEL = 500, "stand-in-qwen2.5-vl"


@pytest.fixture(scope="module")
def three() -> Iterator[list[StandIn]]:
    """Three stand-ins with canned answers; drawn scenes they answer by looking."""
    servers = [StandIn("--canned", "--prefill-seconds", "0", "--decode-seconds-per-token", "0") for _ in range(3)]
    for server in servers:
        server.start(wait=False)
    for server in servers:
        while not server.answers():
            pass
    yield servers
    for server in servers:
        server.kill()


class Running:
    """Requests to some servers, watched by canaries."""

    def __init__(self, inference: Inference, every: int, rng: random.Random, model: str) -> None:
        self.inference = inference
        self.prover = Prover(Recipe(), FAMILIES["qwen2.5-vl"], model, rng)
        self.watch = CanaryWatch(self.prover, inference.pool, every)
        inference.on_answer = self.watch.answered

    async def admit(self, endpoint: Endpoint) -> bool:
        """Proves an endpoint."""
        await self.prover.prove(endpoint)
        self.watch.proven(endpoint)
        return True

    async def close(self) -> None:
        """Ends it."""
        await self.watch.close()
        await self.inference.__aexit__(None, None, None)

    async def ask(self, count: int) -> None:
        """Sends so many requests."""
        left = iter(range(count))

        async def work() -> None:
            for number in left:
                await self.inference.ask(body(str(number)))

        await asyncio.gather(*(work() for _ in range(24)))


async def running(servers: list[StandIn], rng: random.Random, warned: list[str], every: int = EVERY) -> Running:
    urls = [f"{server.url}/v1" for server in servers]
    inference = Inference(urls, "none", max_concurrency=24, warn=warned.append)
    await inference.__aenter__()
    run = Running(inference, every, rng, await inference.check(None))
    inference.pool.admit = run.admit
    for endpoint in inference.pool.endpoints:
        await run.admit(endpoint)
    return run


@pytest.mark.timeout(120)
async def test_the_one_of_three_servers_whose_boxes_go_wrong_is_named_within_1500_of_its_requests(
    three: list[StandIn], rng: random.Random
) -> None:
    warned: list[str] = []
    run = await running(three, rng, warned)
    await run.ask(rng.randint(300, 1200))
    wrong = rng.randrange(3)
    endpoint = run.inference.pool.endpoints[wrong]
    before = endpoint.answered
    three[wrong].set_faults(SHIFTED)
    while endpoint.up.is_set():
        assert endpoint.answered - before <= 1500
        await run.ask(100)
    named = [line for line in warned if "its boxes are wrong" in line]
    assert len(named) == 1
    assert endpoint.url in named[0]
    assert "the others take its requests" in named[0]
    canaries = run.prover.findings[endpoint.url].canaries
    assert canaries.wrong >= 2
    assert 0 < canaries.in_doubt <= 1500
    three[wrong].set_faults()
    await run.close()


async def test_if_all_servers_go_wrong_the_run_stops(three: list[StandIn], rng: random.Random) -> None:
    run = await running(three, rng, [], every=20)
    for server in three:
        server.set_faults(SHIFTED)
    with pytest.raises(ServerRefused, match="its boxes were right, and are not any more"):
        await run.ask(2000)
    for server in three:
        server.set_faults()
    await run.close()


async def test_a_server_that_is_right_again_goes_on(three: list[StandIn], rng: random.Random) -> None:
    warned: list[str] = []
    run = await running(three[:1], rng, warned, every=20)
    three[0].set_faults({"kind": "shift", "count": 3, "match": "Test drawing"})
    async with asyncio.timeout(30):
        while not any("is back" in line for line in warned):
            await run.ask(100)
    await run.close()
    assert len([line for line in warned if "its boxes are wrong" in line]) == 1


async def test_large_canaries_show_what_a_server_does_to_large_images(rng: random.Random) -> None:
    questions, agrees = Questions(Recipe(), FAMILIES["qwen2.5-vl"], MODEL, rng), Sight(verdict="agrees", grid=28)
    right: dict[Kind, list[bool]] = {SMALL: [], LARGE: []}
    with StandIn.started("--max-visual-tokens", "512") as server:
        async with Inference([f"{server.url}/v1"], "none", max_concurrency=4) as inference:
            (endpoint,) = inference.pool.endpoints
            for kind in [SMALL, LARGE] * 10:
                answer = await questions.about(kind, Asker(endpoint, 60), agrees)
                assert isinstance(answer, tuple)
                right[kind].append(answer[0].fits(answer[1], questions.family)[Space("pixels")] >= 0.5)
    assert all(right[SMALL])
    assert right[LARGE].count(True) <= 1


@pytest.mark.fuzz
@pytest.mark.timeout(300)
async def test_there_is_no_false_alarm(three: list[StandIn], rng: random.Random, fuzzing: bool) -> None:
    warned: list[str] = []
    run = await running(three, rng, warned, every=EVERY if fuzzing else 20)
    await run.ask(20_000 if fuzzing else 600)
    canaries = [finding.canaries for finding in run.prover.findings.values()]
    await run.close()
    assert warned == []
    assert sum(each.asked for each in canaries) >= (30 if fuzzing else 15)
    assert not any(each.wrong for each in canaries)


async def test_with_0_there_are_no_canaries(three: list[StandIn], rng: random.Random) -> None:
    run = await running(three, rng, [], every=0)
    await run.ask(300)
    await run.close()
    assert not any(finding.canaries.asked for finding in run.prover.findings.values())
