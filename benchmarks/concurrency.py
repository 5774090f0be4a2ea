"""Compares `max_concurrency="auto"` with the best fixed number.

`python -m benchmarks.concurrency` uses stand-ins with known capacity: 5 capacities, 3 kinds of bottleneck. Each run
with auto has a parallel one with the best fixed number, on its own stand-in. `python -m benchmarks.concurrency --vllm`
compares them in turn, on a real vLLM on CPU with the demo's tiny model, in rounds: machines have better minutes than
others, so only the ratios within a round mean something.
"""

import argparse
import asyncio
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from blocks import VLLMServer
from demo.processes import TINY_GROUNDER_RECIPE, TINY_GROUNDER_SERVER
from demo.scenes import draw_scene
from stand_in.process import StandIn
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.inference.client import Inference
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.serving.keeper import kept_servers
from vllm_annotate.serving.preflight import preflight
from vllm_annotate.storage.yaml_fields import read_fields

SECONDS = 60
ANSWERS_PER_SECOND = {4: 8, 16: 16, 64: 32, 128: 40, 256: 50}  # at full capacity
SHAPES = ("slots", "compute", "cache")
SHARE = 1.25  # of the capacity: the best fixed number, as with less an engine idles while answers are in transit
FIXED_ON_VLLM, ROUNDS_ON_VLLM, WARM_UP_SECONDS = (16, 32, 64), 5, 20


def timing_options(shape: str, capacity: int) -> list[str]:
    """The stand-in's options for an engine that runs `capacity` requests at full speed."""
    seconds = capacity / ANSWERS_PER_SECOND[capacity]
    limits = {"slots": ["--slots", capacity], "compute": ["--compute-slots", capacity],
              "cache": ["--kv-cache-tokens", 1060 * capacity]}  # fmt: skip
    options = ["--canned", "--slots", 1024, "--kv-cache-tokens", 10_000_000, "--completion-tokens", 100,
               "--completion-spread", 0.5, "--prefill-seconds", 0.15 * seconds,
               "--decode-seconds-per-token", 0.0085 * seconds, *limits[shape]]  # fmt: skip
    return [str(option) for option in options]


def white_image() -> PreparedImage:
    """A request body; a canned answer needs no image."""
    buffer = io.BytesIO()
    Image.new("RGB", (448, 336), "white").save(buffer, "JPEG")
    return PreparedImage(buffer.getvalue(), 448, 336, 448, 336)


async def answers_in(url: str, model: str, concurrency: int | Literal["auto"], seconds: float, recipe: Recipe) -> int:
    """Prints the answers of a client that never runs out of requests."""
    images = [white_image()] if "stand-in" in model else scenes()
    family = FAMILIES["qwen2.5-vl"]
    request = RequestTemplate(recipe, family, model)
    bodies = [request.body("a caption", image.url()) for image in images]
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
    """Small images, all different, so that the server's caches do not help."""
    prepared = []
    rng = random.Random(3)
    for _ in range(256):
        buffer = io.BytesIO()
        draw_scene(rng, 224, 224, 1).image.save(buffer, "JPEG", quality=90)
        prepared.append(PreparedImage(buffer.getvalue(), 224, 224, 224, 224))
    return prepared


def start_client(url: str, model: str, concurrency: str, seconds: float) -> "subprocess.Popen[str]":
    """Runs a client in a separate process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.concurrency",
        "--client",
        url,
        model,
        concurrency,
        str(seconds),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def compare_on_stand_ins(capacities: list[int]) -> None:
    """Prints a table with a row per engine; the three shapes of a capacity run in parallel."""
    print(f"runs of {SECONDS} s; the fixed number is {SHARE} times the capacity")
    print("| capacity | engine | fixed | auto | of the fixed | most in flight | of the capacity |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for capacity in capacities:
        fixed = str(round(SHARE * capacity))
        with ExitStack() as stack:
            runs = {
                (shape, tried): start_client_and_server(stack, timing_options(shape, capacity), tried)
                for shape in SHAPES
                for tried in ("auto", fixed)
            }
            rates = {which: json.loads(run.communicate()[0])["answered"] / SECONDS for which, (_, run) in runs.items()}
            for shape in SHAPES:
                most = runs[shape, "auto"][0].most_at_once()
                ratios.append(rates[shape, "auto"] / rates[shape, fixed])
                print(
                    f"| {capacity} | {shape} | {rates[shape, fixed]:.1f}/s | {rates[shape, 'auto']:.1f}/s | "
                    f"{ratios[-1]:.1%} | {most} | {most / capacity:.2f}× |",
                    flush=True,
                )
    print(f"auto / fixed: median {statistics.median(ratios):.3f}, {min(ratios):.3f}-{max(ratios):.3f}")


def start_client_and_server(
    stack: ExitStack, options: list[str], concurrency: str
) -> "tuple[StandIn, subprocess.Popen[str]]":
    """Runs a client with its own stand-in."""
    server = stack.enter_context(StandIn.started(*options))
    return server, start_client(f"{server.url}/v1", "stand-in-qwen2.5-vl", concurrency, SECONDS)


async def compare_on_vllm() -> None:
    """Prints a line per run, in rounds after a warm-up, and how auto compares with the best fixed number of them."""
    server = VLLMServer(**read_fields(TINY_GROUNDER_SERVER, "server", VLLMServer))
    found = preflight(server.start, server.model, "") if server.start is not None else None
    assert found is not None  # noqa: S101 - for the type checker
    found.check()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as logs:
        async with kept_servers(found.replicas, Path(logs), print):

            async def outcome(concurrency: str, seconds: float) -> dict[str, Any]:
                client = start_client(server.urls()[0], found.model_name, concurrency, seconds)
                return dict(json.loads((await asyncio.to_thread(client.communicate))[0]))

            await outcome(str(max(FIXED_ON_VLLM)), WARM_UP_SECONDS)
            for _ in range(ROUNDS_ON_VLLM):
                for concurrency in ("auto", *map(str, FIXED_ON_VLLM)):
                    run = await outcome(concurrency, SECONDS)
                    rates.setdefault(concurrency, []).append(run["answered"] / SECONDS)
                    limits = [(change["second"], change["limit"]) for change in run["changes"]]
                    most = f"most in flight {run['most_in_flight']}"
                    print(f"{concurrency}: {rates[concurrency][-1]:.2f}/s, {most}", limits, flush=True)
    auto = rates.pop("auto")
    for concurrency, of in rates.items():
        print(f"auto / {concurrency}: {spread([ours / fixed for ours, fixed in zip(auto, of, strict=True)])}")
    best = max(rates, key=lambda concurrency: statistics.median(rates[concurrency]))
    print(f"the best fixed number was {best}: median {statistics.median(rates[best]):.1f}/s")


def spread(ratios: list[float]) -> str:
    """The median, the least and the greatest."""
    return f"median {statistics.median(ratios):.2f}, {min(ratios):.2f}-{max(ratios):.2f}"


def main() -> None:
    """Runs the benchmark."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--capacities", type=int, nargs="*", default=list(ANSWERS_PER_SECOND))
    options.add_argument("--vllm", action="store_true", help="use a real vLLM on CPU (make .venv-vllm/.installed)")
    options.add_argument("--client", nargs=4, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.client:
        url, model, concurrency, seconds = given.client
        fields = {} if "stand-in" in model else read_fields(TINY_GROUNDER_RECIPE, "recipe", Recipe)
        number: int | Literal["auto"] = "auto" if concurrency == "auto" else int(concurrency)
        asyncio.run(answers_in(url, model, number, float(seconds), Recipe(**fields)))
    elif given.vllm:
        asyncio.run(compare_on_vllm())
    else:
        compare_on_stand_ins(given.capacities)


if __name__ == "__main__":
    main()
