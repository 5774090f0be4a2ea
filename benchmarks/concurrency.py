"""`max_concurrency="auto"` against the best fixed number: what it reaches without being told anything.

`python -m benchmarks.concurrency` asks stand-ins whose capacity is known: 5 capacities, 3 shapes of what holds an
engine back. Beside each automatic run three fixed ones go on in the same minute, each against a stand-in of its own.
`python -m benchmarks.concurrency --vllm URL` compares, turn by turn, on a real server that somebody has started.
"""

import argparse
import asyncio
import io
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from PIL import Image

from demo.scenes import draw_scene
from flows.families import FAMILIES
from flows.images import PreparedImage
from flows.inference import Inference
from flows.recipe import Recipe, request_body
from flows.yaml_fields import read_fields
from tests.client import StandIn

SECONDS = 60
ANSWERS_PER_SECOND = {4: 8, 16: 16, 64: 32, 128: 40, 256: 50}  # at full capacity
SHAPES = ("slots", "compute", "cache")
SHARES = (1.1, 1.5, 2.0)  # fixed numbers, of the capacity: with less an engine has slots idle while answers travel
FIXED_ON_VLLM = (4, 8, 16, 24, 32, 48, 64)


def timing_options(shape: str, capacity: int) -> list[str]:
    """The stand-in's options for an engine that runs so many requests at full speed."""
    seconds = capacity / ANSWERS_PER_SECOND[capacity]
    limits = {"slots": ["--slots", capacity], "compute": ["--compute-slots", capacity],
              "cache": ["--kv-cache-tokens", 1060 * capacity]}  # fmt: skip
    options = ["--canned", "--slots", 1024, "--kv-cache-tokens", 10_000_000, "--completion-tokens", 100,
               "--completion-spread", 0.5, "--prefill-seconds", 0.15 * seconds,
               "--decode-seconds-per-token", 0.0085 * seconds, *limits[shape]]  # fmt: skip
    return [str(option) for option in options]


def white_image() -> PreparedImage:
    """Something to send; a canned answer needs no sight."""
    buffer = io.BytesIO()
    Image.new("RGB", (448, 336), "white").save(buffer, "JPEG")
    return PreparedImage(buffer.getvalue(), 448, 336, 448, 336)


async def answers_in(url: str, model: str, concurrency: int | Literal["auto"], seconds: float, recipe: Recipe) -> int:
    """Answers of a client that never runs out of requests."""
    images = [white_image()] if "stand-in" in model else scenes()
    family = FAMILIES["qwen2.5-vl"]
    bodies = [request_body(recipe, family, model, "a caption", image) for image in images]
    answered = sent = 0

    async with Inference([url], "none", max_concurrency=concurrency) as inference:

        async def ask_on() -> None:
            nonlocal answered, sent
            while True:
                sent += 1
                await inference.ask(bodies[sent % len(bodies)])
                answered += 1

        tasks: list[asyncio.Task[None]] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while len(tasks) < inference.pool.limit + 16:
                tasks.append(asyncio.create_task(ask_on()))
            await asyncio.sleep(0.02)
        counted = answered
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        print(json.dumps({"answered": counted, **inference.counts()[url]["concurrency"]}))
    return counted


def scenes() -> list[PreparedImage]:
    """Different small images, so that no cache of the server helps."""
    import random

    prepared = []
    rng = random.Random(3)
    for _ in range(256):
        buffer = io.BytesIO()
        draw_scene(rng, 224, 224, 1).image.save(buffer, "JPEG", quality=90)
        prepared.append(PreparedImage(buffer.getvalue(), 224, 224, 224, 224))
    return prepared


def start_client(url: str, model: str, concurrency: str, seconds: float, recipe: str = "") -> "subprocess.Popen[str]":
    """A client in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.concurrency",
        "--client",
        url,
        model,
        concurrency,
        str(seconds),
        recipe,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def compare_on_stand_ins(capacities: list[int]) -> None:
    """Prints the table, a row an engine."""
    print(f"runs of {SECONDS} s; shares are of the best fixed number's answers")
    print("| engine | capacity | best fixed | auto | of the best | most in flight | of the capacity |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for shape in SHAPES:
        for capacity in capacities:
            tries = ["auto", *(str(round(share * capacity)) for share in SHARES)]
            with ExitStack() as stack:
                servers = [stack.enter_context(StandIn.started(*timing_options(shape, capacity))) for _ in tries]
                clients = [
                    start_client(f"{server.url}/v1", "stand-in-qwen2.5-vl", concurrency, SECONDS)
                    for server, concurrency in zip(servers, tries, strict=True)
                ]
                outcomes = [json.loads(client.communicate()[0]) for client in clients]
                most = servers[0].most_at_once()
            rates = {
                concurrency: outcome["answered"] / SECONDS for concurrency, outcome in zip(tries, outcomes, strict=True)
            }
            auto = rates.pop("auto")
            best = max(rates, key=lambda concurrency: rates[concurrency])
            ratios.append(auto / rates[best])
            print(
                f"| {shape} | {capacity} | {rates[best]:.1f}/s at {best} | {auto:.1f}/s | {ratios[-1]:.1%} | {most} | "
                f"{most / capacity:.2f}× |",
                flush=True,
            )
    print(f"auto / best fixed: median {statistics.median(ratios):.3f}, {min(ratios):.3f}-{max(ratios):.3f}")


def compare_on_vllm(url: str, model: str, recipe: str) -> None:
    """Prints a line a number, in two rounds with the automatic runs between the fixed ones."""
    rates: dict[str, list[float]] = {}
    for _ in range(2):
        for concurrency in (*map(str, FIXED_ON_VLLM), "auto"):
            client = start_client(url, model, concurrency, SECONDS, recipe)
            outcome = json.loads(client.communicate()[0])
            rates.setdefault(concurrency, []).append(outcome["answered"] / SECONDS)
            limits = [change["limit"] for change in outcome["changes"]]
            print(
                f"{concurrency}: {rates[concurrency][-1]:.2f}/s, most in flight {outcome['most_in_flight']}",
                limits,
                flush=True,
            )
    fixed = {concurrency: statistics.mean(of) for concurrency, of in rates.items() if concurrency != "auto"}
    best = max(fixed, key=lambda concurrency: fixed[concurrency])
    auto = statistics.mean(rates["auto"])
    print(f"best fixed {best}: {fixed[best]:.2f}/s; auto {auto:.2f}/s, {auto / fixed[best]:.1%} of it")


def main() -> None:
    """See the module's text."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--capacities", type=int, nargs="*", default=list(ANSWERS_PER_SECOND))
    options.add_argument("--vllm", nargs=3, metavar=("URL", "MODEL", "RECIPE"))
    options.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.client:
        url, model, concurrency, seconds, recipe = given.client
        fields = read_fields(Path(recipe), "recipe", Recipe) if recipe else {}
        number: int | Literal["auto"] = "auto" if concurrency == "auto" else int(concurrency)
        asyncio.run(answers_in(url, model, number, float(seconds), Recipe(**fields)))
    elif given.vllm:
        compare_on_vllm(*given.vllm)
    else:
        compare_on_stand_ins(given.capacities)


if __name__ == "__main__":
    main()
