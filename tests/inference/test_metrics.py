"""Reading /metrics, and telling whether they show all that an endpoint does."""

import asyncio
import time
from dataclasses import replace

import pytest

from stand_in.batching import Engine, Timing
from tests.inference.test_client import body, raw_server
from tests.inference.test_gateway import ANSWER, MODELS, reply
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.endpoint import HEALTH_TIMEOUT_SECONDS
from vllm_annotate.inference.metrics import MetricsCheck, ServerMetrics, read_metrics
from vllm_annotate.inference.samples import AWAY_SECONDS

TEXT = Engine(Timing(), "m").metrics().decode()
IN_FLIGHT, TOKENS_EACH = 4, 100


def changed(name: str, value: str) -> bytes:
    """The metrics of an idle vLLM, with another value of one of them."""
    lines = [f"{line.rpartition(' ')[0]} {value}" if line.startswith(name) else line for line in TEXT.splitlines()]
    assert any(line.startswith(name) for line in lines)
    return "\n".join(lines).encode()


def test_the_metrics_of_an_idle_vllm_are_zero() -> None:
    assert read_metrics(TEXT.encode()) == ServerMetrics(running=0, waiting=0)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1e300", "many", ""])
@pytest.mark.parametrize(
    "name", ["vllm:num_requests_running", "vllm:generation_tokens_total", "vllm:inter_token_latency_seconds_sum"]
)
def test_metrics_that_make_no_sense_are_none(name: str, value: str) -> None:
    assert read_metrics(changed(name, value)) is None


@pytest.mark.parametrize(
    "name",
    ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens",
     "vllm:inter_token_latency_seconds"],
)  # fmt: skip
def test_metrics_without_what_the_limit_follows_are_none(name: str) -> None:
    """As a router's, which counts requests but no tokens, or a later vLLM's with another name."""
    assert read_metrics(TEXT.replace(name, f"{name}_renamed").encode()) is None


def test_metrics_without_labels_are_read() -> None:
    bare = "\n".join(line.partition("{")[0] + line.rpartition("}")[2] for line in TEXT.splitlines() if "{" in line)
    assert read_metrics(bare.encode()) == ServerMetrics(running=0, waiting=0)


class Simulated:
    """Servers that answer, and looks at what they count."""

    def __init__(self, servers: int, *, usage: bool = True, others: float = 0.0) -> None:
        self.check = MetricsCheck()
        self.answered = self.troubles = 0
        self.at = 0.0
        self._usage = usage
        self._others = others  # tokens of other clients, as a share of ours
        self._servers = [ServerMetrics(running=1, waiting=0) for _ in range(servers)]
        self._next = 0

    def answer(self, count: int = 1) -> None:
        """Answers so many requests, by the servers in turn."""
        for _ in range(count):
            self.answered += 1
            turn = self._next = (self._next + 1) % len(self._servers)
            before, tokens = self._servers[turn], TOKENS_EACH * (1 + self._others)
            self._servers[turn] = replace(
                before,
                generation_tokens=before.generation_tokens + tokens,
                token_gaps=before.token_gaps + tokens,
                finished=before.finished + 1 + self._others,
            )

    def look(self, server: int | None = 0, seconds: float = 0.5) -> str:
        """Looks at one of the servers, or gets no metrics; returns the fault."""
        self.at += seconds
        tokens = TOKENS_EACH * self.answered if self._usage else 0
        self.check.add(
            self.at,
            None if server is None else self._servers[server],
            answered=self.answered, tokens=tokens, in_flight=IN_FLIGHT, troubles=self.troubles,
        )  # fmt: skip
        return self.check.fault

    def restart(self, server: int = 0) -> None:
        self._servers[server] = ServerMetrics(running=1, waiting=0)


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("servers", [2, 3, 8])
def test_metrics_of_always_the_same_of_several_servers_are_found_out(servers: int, usage: bool) -> None:
    several = Simulated(servers, usage=usage)
    several.look()
    for _ in range(40):
        several.answer()
        several.look()
    assert "as if it were one server of several" in several.check.fault


@pytest.mark.parametrize("seconds_each", [0.5, 20, 45])
def test_metrics_of_another_server_each_time_are_found_out_however_slow_the_answers(seconds_each: float) -> None:
    several = Simulated(4)
    several.answer(40)
    several.restart(2)  # so that it has counted less than the others
    for number in range(16):
        several.answer()
        several.look(number % 4, seconds_each)
    assert "its counters keep going back" in several.check.fault


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("others", [0.0, 0.5, 20.0])
def test_the_metrics_of_one_server_are_trusted_whoever_else_uses_it(others: float, usage: bool) -> None:
    one = Simulated(1, usage=usage, others=others)
    for _ in range(200):
        one.answer()
        assert one.look() == ""


def test_a_server_that_restarts_again_and_again_is_trusted() -> None:
    """Each time its requests are lost."""
    one = Simulated(1)
    for _ in range(10):
        one.answer(10)
        one.look()
        one.restart()
        one.troubles += IN_FLIGHT
        assert one.look(seconds=20) == ""


def test_a_server_that_is_replaced_without_a_lost_request_is_trusted() -> None:
    one = Simulated(1)
    for _ in range(6):
        one.answer(50)
        one.look()
        one.restart()
        assert one.look(seconds=3600) == ""


def test_metrics_may_vanish_and_come_back() -> None:
    one = Simulated(1)
    one.look(None)
    assert one.check.are_missing, "at the first look, there is nothing to wait for"
    one.look(0)
    assert not one.check.are_missing
    one.look(None)
    assert not one.check.are_missing, "one look may fail"
    for _ in range(30):
        one.look(None)
    assert one.check.are_missing
    assert not one.check.is_due(one.at + 1)
    assert one.check.is_due(one.at + 60)
    one.look(0)
    assert not one.check.are_missing


async def test_auto_climbs_though_metrics_hang() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/metrics" in head:
            await reader.read()  # until the client leaves
        elif b"/models" in head:
            writer.write(MODELS)
        else:
            await asyncio.sleep(0.05)
            writer.write(ANSWER)
        writer.close()

    async with raw_server(talk) as url, Inference([f"{url}/v1"], "none", max_concurrency="auto") as client:
        until = time.monotonic() + 3 * HEALTH_TIMEOUT_SECONDS

        async def keep_asking() -> None:
            while client.pool.limit <= 4 and time.monotonic() < until:
                await client.ask(body())

        await asyncio.gather(*(keep_asking() for _ in range(12)))
        assert client.pool.limit > 4


def test_the_slowest_look_does_not_pass_for_an_absence() -> None:
    assert AWAY_SECONDS > HEALTH_TIMEOUT_SECONDS + 2


async def test_answers_without_usage_count_as_much_as_they_are() -> None:
    """A limit at which nothing is produced seems worse than any other, so that it would rise without end."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER if head.startswith(b"POST") else reply("404 Not Found", b""))
        await writer.drain()
        writer.close()

    async with raw_server(talk) as url, Inference([f"{url}/v1"], "none", max_concurrency="auto") as client:
        for _ in range(3):
            await client.ask(body())
        sample = await client.pool.endpoints[0].sample()
    assert sample is not None
    assert (sample.by_requests, sample.tokens) == (True, 3)
