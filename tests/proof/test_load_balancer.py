"""Proofs through a real nginx: one wrong server among four behind the same address."""

import shutil
from collections.abc import Awaitable, Callable

import pytest

from stand_in.gateway import gateway
from stand_in.process import StandIn
from tests.proof.conftest import Server
from vllm_annotate.proof.finding import Finding

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (nginx-light)")

Prove = Callable[..., Awaitable[Finding]]
TIMES = 5


class Behind:
    """Servers behind one address, as `prove` takes a server."""

    def __init__(self, url: str) -> None:
        self.url = url


async def test_four_equal_servers_behind_one_address_are_proven(server: Server, prove: Prove) -> None:
    right = server()
    with gateway([right.port, server("--slots", "63").port, server("--slots", "62").port]) as url:
        for _ in range(TIMES):
            assert (await prove(Behind(url), "qwen2.5-vl")).is_proven


async def test_one_of_four_that_reduces_images_is_noticed(server: Server, prove: Prove) -> None:
    ports = [server().port, server("--slots", "63").port, server("--slots", "62").port]
    with gateway([*ports, server("--max-visual-tokens", "500").port]) as url:
        for _ in range(TIMES):
            finding = await prove(Behind(url), "qwen2.5-vl")
            assert finding.sees.verdict == "differs"
            assert "it reduces images to about" in finding.refused


async def test_one_of_four_with_another_model_is_noticed(server: Server, prove: Prove) -> None:
    other: StandIn = server("--family", "internvl", "--model", "stand-in-qwen2.5-vl")
    ports = [server().port, server("--slots", "63").port, server("--slots", "62").port]
    with gateway([*ports, other.port]) as url:
        for _ in range(TIMES):
            assert (await prove(Behind(url), "qwen2.5-vl")).refused
    relative = [server("--family", family, "--model", "one").port for family in ("glm-v", "internvl", "minicpm-v")]
    with gateway([*relative, server("--family", "kimi-vl", "--model", "one").port]) as url:
        for _ in range(TIMES):
            finding = await prove(Behind(url), "thousandths")
            assert finding.points.strays >= 2, finding
            assert "check the servers behind this address" in finding.refused
