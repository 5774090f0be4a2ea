"""How well auto does behind one address that balances several servers, whose /metrics answers for one in turn.

    python -m benchmarks.load_balancer [SECONDS] [ROUNDS] [--servers N …]

Four, then eight stand-ins of 8 slots and 20 answers a second each behind nginx, with a fixed limit and with auto, in
turn. Needs nginx (apt-get install nginx-light). It says nothing of servers that limit themselves in other ways.
"""

import argparse
import asyncio
import statistics
import time
from contextlib import ExitStack
from typing import Literal

from stand_in.gateway import gateway
from stand_in.process import StandIn
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.inference.client import Inference
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe

SLOTS, PREFILL_SECONDS, MODEL = 8, 0.4, "stand-in-qwen2.5-vl"


async def rate(url: str, limit: int | Literal["auto"], tasks: int, seconds: float) -> tuple[float, int]:
    """Answers per second from the start, and the limit at the end."""
    image = PreparedImage(b"\xff\xd8\xff\xd9", 56, 56, 56, 56).url()
    body = RequestTemplate(Recipe(), FAMILIES["qwen2.5-vl"], MODEL).body("", image)
    async with Inference([f"{url}/v1"], "none", max_concurrency=limit) as client:
        end = time.monotonic() + seconds

        async def keep_asking() -> int:
            answered = 0
            while time.monotonic() < end:
                await client.ask(body)
                answered += 1
            return answered

        counts = await asyncio.gather(*(keep_asking() for _ in range(tasks)))
        return sum(counts) / seconds, client.pool.limit


def compare(servers: int, seconds: float, rounds: int) -> None:
    """Prints the rates of each round, and what auto reaches."""
    shares, capacity = [], servers * SLOTS
    with ExitStack() as stack:
        timing = ("--canned", "--slots", str(SLOTS), "--prefill-seconds", str(PREFILL_SECONDS))
        started = [stack.enter_context(StandIn.started(*timing)) for _ in range(servers)]
        url = stack.enter_context(gateway([server.port for server in started]))
        for number in range(rounds):
            fixed, _ = asyncio.run(rate(url, round(1.25 * capacity), 4 * capacity, seconds))
            auto, limit = asyncio.run(rate(url, "auto", 4 * capacity, seconds))
            shares.append(auto / fixed)
            print(
                f"{servers} servers, round {number + 1}: fixed {fixed:.1f}/s, auto {auto:.1f}/s with {limit} in "
                f"flight: {auto / fixed:.0%}",
                flush=True,
            )
    of_all = f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"
    print(f"{servers} servers: auto reaches {of_all} in {seconds:g} s", flush=True)


def main() -> None:
    """Runs the benchmark."""
    options = argparse.ArgumentParser()
    options.add_argument("seconds", nargs="?", type=float, default=60)
    options.add_argument("rounds", nargs="?", type=int, default=3)
    options.add_argument("--servers", type=int, nargs="+", default=[4, 8])
    given = options.parse_args()
    for servers in given.servers:
        compare(servers, given.seconds, given.rounds)


if __name__ == "__main__":
    main()
