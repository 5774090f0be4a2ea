"""What looking costs: the processor time of a second's samples, and the throughput with and without them.

`python -m benchmarks.telemetry`. Two cards by a stand-in for NVML, two servers of known capacity by stand-ins for vLLM;
the same images are annotated in turn with and without telemetry.
"""

import asyncio
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

from blocks import VLLMServer
from demo.scenes import draw_scene
from stand_in.nvml import compile_nvml
from tests.conftest import Job
from tests.support.client import StandIn
from vllm_annotate.pipeline.recording import recording
from vllm_annotate.pipeline.session import current_plan, open_run
from vllm_annotate.results.parts import Part, pending_rows

IMAGES, PAIRS, IDLE_SECONDS, IN_FLIGHT = 1500, 10, 40, 32


def opened(job: Job, servers: list[StandIn]) -> Any:
    """The run of the job."""
    endpoints = [f"{server.url}/v1" for server in servers]
    return open_run(
        input=job.input, image_root=job.images, output=job.output, server=VLLMServer(endpoints=endpoints), recipe=None,
        max_concurrency=IN_FLIGHT, image_column="image_path", caption_column="caption", error_budget=0,
        server_wait_seconds=60, request_timeout_seconds=60,
    )  # fmt: skip


async def idle_share(job: Job, servers: list[StandIn]) -> float:
    """Share of one core that samples of a run take in which nothing else happens."""
    async with opened(job, servers) as run:
        shares = []
        for telemetry in (nullcontext(), recording(run, IMAGES, lambda _: None)):
            async with telemetry:
                before, begun = time.process_time(), time.monotonic()
                await asyncio.sleep(IDLE_SECONDS)
                shares.append((time.process_time() - before) / (time.monotonic() - begun))
    return shares[1] - shares[0]


async def annotate(job: Job, servers: list[StandIn], *, observed: bool) -> tuple[float, float]:
    """Annotates the job's images; returns images a second, and processor seconds an image."""
    shutil.rmtree(job.work, ignore_errors=True)
    async with opened(job, servers) as run:
        plan = current_plan(run, IMAGES)
        rows, part = pending_rows(run.workspace, plan.chunks[0], run.source), Part(run.workspace, plan.chunks[0])
        await run.annotator.turn(plan.chunks[0])
        async with recording(run, plan.rows, lambda _: None) if observed else nullcontext():
            begun, before = time.monotonic(), time.process_time()
            await run.annotator.annotate(rows, part)
            figures = IMAGES / (time.monotonic() - begun), (time.process_time() - before) / IMAGES
        part.close()
    return figures


async def measure(folder: Path) -> None:
    """Prints the figures."""
    job = Job(folder, [f"{number:05d}.jpg" for number in range(IMAGES)])
    job.images.mkdir()
    draw_scene(random.Random(1), 196, 168, 1).image.save(folder / "one.jpg", quality=90)
    for name in job.names:
        os.link(folder / "one.jpg", job.images / name)
    job.write_input(job.rows())
    options = ("--canned", "--slots", "8", "--prefill-seconds", "0.1")  # 80 images a second each
    with StandIn.started(*options) as one, StandIn.started(*options) as other:
        share = await idle_share(job, [one, other])
        print(f"samples of 2 GPUs, 2 servers and the client: {share:.2%} of one core")
        rates, costs = [], []
        for pair in range(PAIRS):
            found = {}
            for observed in (True, False) if pair % 2 else (False, True):
                found[observed] = await annotate(job, [one, other], observed=observed)
            rates.append(found[True][0] / found[False][0])
            costs.append(found[True][1] / found[False][1])
            print(f"  {found[True][0]:.1f} and {found[False][0]:.1f} images/s with and without", flush=True)
    for name, ratios in (("throughput", rates), ("the client's processor time an image", costs)):
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name}, with / without: median {middle:.3f} (middle half of {PAIRS} pairs {low:.3f}–{high:.3f})")


def main() -> None:
    """Measures, in a process that finds the two cards."""
    with tempfile.TemporaryDirectory() as name:
        if "LD_LIBRARY_PATH" not in os.environ and (library := compile_nvml(Path(name))) is not None:
            environment = os.environ | {"LD_LIBRARY_PATH": str(library)}
            os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-m", "benchmarks.telemetry"], environment)  # noqa: S606
            return
        asyncio.run(measure(Path(name)))


if __name__ == "__main__":
    main()
