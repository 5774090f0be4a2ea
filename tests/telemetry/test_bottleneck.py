"""Bottlenecks: of constructed samples, and of stand-ins with a known one."""

import asyncio
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from demo.scenes import draw_scene
from stand_in.process import StandIn
from tests.conftest import Job
from vllm_annotate.pipeline.one_input import OneInput
from vllm_annotate.pipeline.recording import recording
from vllm_annotate.pipeline.session import open_run, plan_or_resume
from vllm_annotate.results.parts import Part, pending_rows
from vllm_annotate.serving.settings import Server
from vllm_annotate.telemetry.bottleneck import Bottleneck, Kind, RunSample, Verdict, what_holds_back

FULL: dict[str, Any] = {
    "endpoints": 1, "up": 1, "in_flight": 64, "limit": 64, "ready": 16, "preparing": 4, "resting": 0, "unasked": 1000,
    "client_cores": 0.5, "machine_cores": 8,
    "prepare_seconds": 0.01, "running": 64, "waiting": 0, "kv_cache_usage": 0.5, "preemptions_per_second": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"up": 0, "in_flight": 0}, "server_away"),
        ({"ready": 0, "in_flight": 20, "running": 20}, "client"),
        ({"ready": 0, "in_flight": 20, "running": 20, "unasked": 0}, "nothing_to_do"),
        ({"ready": 0, "in_flight": 20, "running": 20, "resting": 50, "preparing": 0}, "server_away"),
        ({"running": 12}, "front_end"),
        ({"running": 12, "lag_seconds": 0.4}, "client"),
        ({"running": 32, "waiting": 32}, "slots"),
        ({"running": 32, "waiting": 32, "gpu_utilisation": 97}, "gpu_compute"),
        ({"running": 32, "waiting": 32, "kv_cache_usage": 0.98}, "kv_cache"),
        (
            {"running": 8, "waiting": 8, "in_flight": 16, "limit": 16, "endpoints": 4, "up": 4, "kv_cache_usage": 0.7},
            "kv_cache",
        ),
        ({"running": 60, "waiting": 4, "preemptions_per_second": 3}, "kv_cache"),
        ({"preemptions_per_second": 3}, "kv_cache"),
        ({}, "max_concurrency"),
        ({"gpu_utilisation": 45}, "max_concurrency"),
        ({"gpu_utilisation": 97}, "gpu_compute"),
        ({"automatic": True}, "gpu_compute"),
        ({"automatic": True, "gpu_utilisation": 40}, "front_end"),
        ({"automatic": True, "climbing": True}, "climbing"),
        ({"running": None, "waiting": None}, "not_seen"),
    ],
)
def test_each_bottleneck_is_recognized(changed: dict[str, Any], kind: Kind) -> None:
    assert what_holds_back(RunSample(**{**FULL, **changed})) == kind


def verdict(*looks: tuple[int, dict[str, Any]]) -> Verdict:
    bottleneck = Bottleneck()
    for seconds, changed in looks:
        for _ in range(seconds):
            bottleneck.add(RunSample(**{**FULL, **changed}))
    return bottleneck.verdict()


def test_the_advice_has_measurements_and_a_remedy() -> None:
    found = verdict((20, {"gpu_utilisation": 45}))
    assert found.advice == "GPU 45 %, waiting 0, in flight 64 = the limit: raise max_concurrency, or set it to auto"
    assert "raise --max-num-seqs" in verdict((9, {"running": 32, "waiting": 32})).advice
    assert verdict((9, {"endpoints": 3, "up": 2})).evidence.startswith("2.0 of 3 servers up; ")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"client_cores": 7.6}, "all 8 cores are busy"),
        ({"client_cores": 1.0}, "one core is full"),
        ({"client_cores": 0.2, "prepare_seconds": 0.9}, "the disk or network is slow"),
        ({"client_cores": 0.2, "preparing": 0}, "raise chunk_size"),
    ],
)
def test_the_advice_for_a_slow_client_has_the_reason(changed: dict[str, Any], words: str) -> None:
    assert words in verdict((5, {"ready": 0, "in_flight": 9, "running": 9, **changed})).advice


def test_the_longest_bottleneck_counts_and_start_and_end_do_not() -> None:
    found = verdict((30, {"automatic": True, "climbing": True}), (12, {"running": 12}), (5, {}), (3, {"up": 0}))
    assert found.kind == "front_end"
    assert found.shares == {"climbing": 0.6, "front_end": 0.24, "max_concurrency": 0.1, "server_away": 0.06}
    assert verdict((2, {})).kind == verdict().kind == "too_short"


@dataclass(frozen=True)
class Case:
    """A stand-in with a known bottleneck; its rate stays far below what two cores can handle."""

    kind: Kind
    options: str  # of the stand-in
    max_concurrency: int | Literal["auto"] = 64
    images: int = 1500
    size: tuple[int, int] = (196, 168)
    killed_after: float | None = None


LARGE = (4000, 3000)
# A group runs in parallel; a busy client needs the machine alone.
CASES = [
    [Case("client", "--slots 256 --prefill-seconds 0.01", size=LARGE)],
    [Case("client", "--slots 256 --prefill-seconds 0.01", "auto", size=LARGE)],
    [
        Case("front_end", "--front-end-seconds 0.1 --slots 256 --prefill-seconds 0.1"),
        Case("slots", "--slots 8 --prefill-seconds 0.8"),
        Case("kv_cache", "--kv-cache-tokens 12000 --prefill-seconds 0.8"),
        Case("max_concurrency", "--slots 256 --prefill-seconds 0.5", 6),
        Case("nothing_to_do", "--prefill-seconds 9", images=20),
        Case("server_away", "--slots 8 --prefill-seconds 0.8", killed_after=2),
    ],
    [
        Case("front_end", "--front-end-seconds 0.1 --slots 256 --prefill-seconds 0.05", "auto"),
        Case("slots", "--slots 8 --prefill-seconds 0.4", "auto"),
        Case("kv_cache", "--kv-cache-tokens 12000 --prefill-seconds 0.4", "auto"),
        Case("gpu_compute", "--slots 256 --compute-slots 6 --completion-tokens 100 --decode-seconds-per-token 0.004",
             "auto"),
    ],
]  # fmt: skip
SECONDS, AUTO_SECONDS = 10, 30  # auto climbs for up to ten of them


async def found_in(case: Case, job: Job) -> Verdict:
    """The verdict on the first seconds of the job."""
    with StandIn.started("--canned", *case.options.split()) as server:
        if case.killed_after is not None:
            asyncio.get_running_loop().call_later(case.killed_after, server.kill)
        seconds = AUTO_SECONDS if case.max_concurrency == "auto" else SECONDS
        return await verdict_of(server, job, case.max_concurrency, seconds)


@pytest.mark.alone
async def test_known_bottlenecks_of_stand_ins_are_recognized_in_nine_of_ten_cases(tmp_path: Path) -> None:
    wrong = []
    for number, group in enumerate(CASES):
        jobs = [job_of_one_image(tmp_path / f"{number}-{place}", case) for place, case in enumerate(group)]
        found = await asyncio.gather(*map(found_in, group, jobs))
        wrong += [(case, verdict) for case, verdict in zip(group, found, strict=True) if verdict.kind != case.kind]
    assert len(wrong) <= 0.1 * sum(map(len, CASES)), wrong


def job_of_one_image(folder: Path, case: Case) -> Job:
    """A job of many names for one image."""
    job = Job(folder, [f"{number:04d}.jpg" for number in range(case.images)])
    job.images.mkdir(parents=True)
    scene = draw_scene(random.Random(1), 400, 300, 2).image.resize(case.size, Image.Resampling.BILINEAR)
    scene.save(folder / "one.jpg", quality=90)
    for name in job.names:
        os.link(folder / "one.jpg", job.images / name)
    job.write_input(job.rows())
    return job


async def verdict_of(server: StandIn, job: Job, max_concurrency: int | Literal["auto"], seconds: float) -> Verdict:
    """What telemetry says of the first seconds of a job."""
    endpoints = Server(endpoints=[f"{server.url}/v1"])
    async with open_run(job.parameters(endpoints, max_concurrency=max_concurrency, chunk_size=10_000)) as run:
        plan = plan_or_resume(run)
        rows = pending_rows(run.workspace, plan.chunks[0], run.source)
        part = Part(run.workspace, plan.chunks[0])
        await run.annotator.turn(part.path)
        async with recording(run, OneInput(run, plan), lambda _: None) as telemetry:
            annotating = asyncio.create_task(run.annotator.annotate(rows, part, job.images))
            await asyncio.wait([annotating], timeout=seconds)
            found = telemetry.bottleneck.verdict()
        annotating.cancel()
        await asyncio.gather(annotating, return_exceptions=True)
    return found
