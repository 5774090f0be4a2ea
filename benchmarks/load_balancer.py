"""How well auto does behind one address that balances several servers, whose /metrics answers for one in turn.

    python -m benchmarks.load_balancer [SECONDS] [ROUNDS]

Four stand-ins of 8 slots and 80 answers a second together behind nginx, with a fixed limit and with auto, in turn.
Needs nginx (apt-get install nginx-light). It says nothing of servers that limit themselves in other ways.
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

SERVERS, SLOTS, PREFILL_SECONDS, MODEL = 4, 8, 0.4, "stand-in-qwen2.5-vl"


async def rate(url: str, limit: int | Literal["auto"], seconds: float) -> tuple[float, int]:
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

        counts = await asyncio.gather(*(keep_asking() for _ in range(128)))
        return sum(counts) / seconds, client.pool.limit


def main() -> None:
    """Prints the rates of each round."""
    options = argparse.ArgumentParser()
    options.add_argument("seconds", nargs="?", type=float, default=60)
    options.add_argument("rounds", nargs="?", type=int, default=3)
    given = options.parse_args()
    shares = []
    with ExitStack() as stack:
        timing = ("--canned", "--slots", str(SLOTS), "--prefill-seconds", str(PREFILL_SECONDS))
        servers = [stack.enter_context(StandIn.started(*timing)) for _ in range(SERVERS)]
        url = stack.enter_context(gateway([server.port for server in servers]))
        for number in range(given.rounds):
            fixed, _ = asyncio.run(rate(url, SERVERS * SLOTS + 8, given.seconds))
            auto, limit = asyncio.run(rate(url, "auto", given.seconds))
            shares.append(auto / fixed)
            print(
                f"round {number + 1}: fixed {fixed:.1f}/s, auto {auto:.1f}/s with {limit} in flight: {auto / fixed:.0%}"
            )
    print(
        f"auto reaches {statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%}) in {given.seconds:g} s"
    )


if __name__ == "__main__":
    main()
