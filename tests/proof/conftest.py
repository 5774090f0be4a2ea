"""Stand-ins of every family, and proofs of them over real HTTP."""

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from stand_in.process import StandIn
from vllm_annotate.errors import ServerRefused
from vllm_annotate.inference.client import Inference
from vllm_annotate.proof.finding import Finding
from vllm_annotate.proof.prove import Prover
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.settings import Recipe

Server = Callable[..., StandIn]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Starts stand-ins with these options, each once."""
    started: dict[tuple[str, ...], StandIn] = {}

    def start(*options: str) -> StandIn:
        if options not in started:
            started[options] = StandIn(*options)
            started[options].start()
        return started[options]

    yield start
    for each in started.values():
        each.kill()


@pytest.fixture
def prove(rng: random.Random) -> Callable[..., Awaitable[Finding]]:
    """Proves a stand-in as if it were of this family."""

    async def proven(server: Any, declared: str, **fields: object) -> Finding:
        recipe = Recipe.model_validate({"family": declared} | fields)
        async with Inference([f"{server.url}/v1"], "none", max_concurrency=8) as inference:
            model, (endpoint,) = await inference.check(None), inference.pool.endpoints
            prover = Prover(recipe, FAMILIES[declared], model, rng)
            with suppress(ServerRefused):  # in the finding
                await prover.prove(endpoint)
            return prover.findings[endpoint.url]

    return proven
