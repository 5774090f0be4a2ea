"""Measures the cost of telemetry: its CPU time per second, and the throughput with and without it.

`python -m benchmarks.telemetry`. Uses a fake NVML with two GPUs and two stand-ins for vLLM with known capacity;
annotates the same images in turn with and without telemetry.
"""

import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from demo.scenes import draw_scene
from stand_in.nvml import compile_nvml
from stand_in.process import StandIn
from vllm_annotate.job import Job
from vllm_annotate.pipeline.one_input import OneInput
from vllm_annotate.pipeline.recording import recording
from vllm_annotate.pipeline.session import open_run, plan_or_resume
from vllm_annotate.results.parts import Part, pending_rows
from vllm_annotate.serving.settings import Server

IMAGES, PAIRS, IDLE_SECONDS, IN_FLIGHT = 1500, 10, 40, 32


def opened(folder: Path, servers: list[StandIn]) -> Any:
    """Opens a run over the images in a folder."""
    server = Server(endpoints=[f"{server.url}/v1" for server in servers])
    return open_run(
        Job(
            input=folder / "input.jsonl",
            image_root=folder / "images",
            output=folder / "labeled.jsonl",
            server=server,
            max_concurrency=IN_FLIGHT,
            error_budget=0,
            chunk_size=IMAGES,
        )
    )


async def idle_share(folder: Path, servers: list[StandIn]) -> float:
    """The share of one core that telemetry takes in an otherwise idle run."""
    async with opened(folder, servers) as run:
        shares = []
        for telemetry in (nullcontext(), recording(run, OneInput(run, plan_or_resume(run)), lambda _: None)):
            async with telemetry:
                before, begun = time.process_time(), time.monotonic()
                await asyncio.sleep(IDLE_SECONDS)
                shares.append((time.process_time() - before) / (time.monotonic() - begun))
    return shares[1] - shares[0]


async def annotate(folder: Path, servers: list[StandIn], *, observed: bool) -> tuple[float, float]:
    """Annotates the job's images; returns images per second and CPU seconds per image."""
    shutil.rmtree(folder / "labeled.work", ignore_errors=True)
    async with opened(folder, servers) as run:
        plan = plan_or_resume(run)
        rows, part = pending_rows(run.workspace, plan.chunks[0], run.source), Part(run.workspace, plan.chunks[0])
        await run.annotator.turn(part.path)
        async with recording(run, OneInput(run, plan), lambda _: None) if observed else nullcontext():
            begun, before = time.monotonic(), time.process_time()
            await run.annotator.annotate(rows, part, run.files.image_root)
            figures = IMAGES / (time.monotonic() - begun), (time.process_time() - before) / IMAGES
        part.close()
    return figures


async def measure(folder: Path) -> None:
    """Prints the figures."""
    (folder / "images").mkdir()
    draw_scene(random.Random(1), 196, 168, 1).image.save(folder / "one.jpg", quality=90)
    with (folder / "input.jsonl").open("w") as rows:
        for name in (f"{number:05d}.jpg" for number in range(IMAGES)):
            os.link(folder / "one.jpg", folder / "images" / name)
            rows.write(json.dumps({"image_path": name, "caption": f"caption of {name}"}) + "\n")
    options = ("--canned", "--slots", "8", "--prefill-seconds", "0.1")  # 80 images per second each
    with StandIn.started(*options) as one, StandIn.started(*options) as other:
        share = await idle_share(folder, [one, other])
        print(f"samples of 2 GPUs, 2 servers and the client: {share:.2%} of one core")
        rates, costs = [], []
        for pair in range(PAIRS):
            found = {}
            for observed in (True, False) if pair % 2 else (False, True):
                found[observed] = await annotate(folder, [one, other], observed=observed)
            rates.append(found[True][0] / found[False][0])
            costs.append(found[True][1] / found[False][1])
            print(f"  {found[True][0]:.1f} and {found[False][0]:.1f} images/s with and without", flush=True)
    for name, ratios in (("throughput", rates), ("the client's processor time an image", costs)):
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name}, with / without: median {middle:.3f} (middle half of {PAIRS} pairs {low:.3f}–{high:.3f})")


def main() -> None:
    """Measures in a process that finds the fake NVML."""
    with tempfile.TemporaryDirectory() as name:
        if "LD_LIBRARY_PATH" not in os.environ and (library := compile_nvml(Path(name))) is not None:
            environment = os.environ | {"LD_LIBRARY_PATH": str(library)}
            os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-m", "benchmarks.telemetry"], environment)  # noqa: S606
            return
        asyncio.run(measure(Path(name)))


if __name__ == "__main__":
    main()
