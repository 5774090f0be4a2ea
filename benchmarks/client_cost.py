"""Processor time an image, beside the model's: this project's flow, the script that people come from, and the limit.

`python -m benchmarks.client_cost [images] [rounds] [chart.svg]`. 64 requests in flight, JPEGs of about 92 KB that need
no resizing, canned answers by nginx; each program as a process of its own, in turn; the flow reports to a Prefect
server.
"""

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import orjson
from PIL import Image

from benchmarks.bars import bars
from benchmarks.canned_server import canned_server
from flows.prefect_server import TemporaryPrefectServer

IN_FLIGHT, DISTINCT, SIZE, KILOBYTES = 64, 50, (924, 700), 92
FLOW = ["-m", "flows.annotate", "--max-concurrency", str(IN_FLIGHT)]


def draw(folder: Path, count: int) -> Path:
    """The input: `count` rows over DISTINCT images, each under names of its own."""
    images = folder / "images"
    images.mkdir()
    rng = random.Random(0)
    for number in range(min(count, DISTINCT)):
        noise = Image.frombytes("RGB", (84, 64), rng.randbytes(84 * 64 * 3)).resize(SIZE, Image.Resampling.BICUBIC)
        quality = next(quality for quality in range(95, 5, -1) if _saved(noise, images / f"{number:06d}.jpg", quality))
        assert quality  # noqa: S101 - the loop above ends with a file of the size that is asked for
    for number in range(DISTINCT, count):
        os.link(images / f"{number % DISTINCT:06d}.jpg", images / f"{number:06d}.jpg")
    rows = (
        {"image_path": f"{number:06d}.jpg", "caption": f"a row of things, number {number}"} for number in range(count)
    )
    source = folder / "input.jsonl"
    source.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return source


def _saved(image: Image.Image, path: Path, quality: int) -> bool:
    image.save(path, quality=quality)
    return path.stat().st_size <= KILOBYTES * 1024


def commands(source: Path, url: str) -> dict[str, list[str]]:
    """What Python is to run for each program; outputs in a folder beside the input."""
    images, outputs = source.with_name("images"), source.with_name("outputs")
    outputs.mkdir(exist_ok=True)
    paths = ["--input", source, "--image-root", images, "--output", outputs / "flow.jsonl"]

    def others(program: str) -> list[str]:
        given = (source, images, outputs / f"{program}.jsonl", url, IN_FLIGHT)
        return ["-m", f"benchmarks.clients.{program}", *map(str, given)]

    return {
        "flow": [*FLOW, *map(str, paths), "--api-base", f"{url}/v1"],
        "engine": others("engine"),
        "script": others("script"),
        "bare aiohttp": others("bare"),
    }


class Cost(NamedTuple):
    """What a process took, the processes that it waits for included."""

    processor_seconds: float
    wall_seconds: float
    peak_mebibytes: float


def measured(command: list[str], log: Path) -> Cost:
    """Runs Python with these arguments to its end."""
    begun = time.monotonic()
    with log.open("wb") as file:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *command],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)],
        )
        _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:2])} failed: {log.read_text()[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - begun, usage.ru_maxrss / 1024)


def main(images: int, rounds: int, chart: str) -> None:
    """Prints a table: medians and extremes, and ratios of the same round; `chart` names an SVG to write."""
    costs: dict[str, list[float]] = {"flow": [], "engine": [], "script": [], "bare aiohttp": []}
    with tempfile.TemporaryDirectory(prefix="client-cost-") as name:
        folder = Path(name)
        source = draw(folder, images)
        server = TemporaryPrefectServer({"PREFECT_HOME": str(folder / "prefect")})
        server.wait_until_ready()
        os.environ |= {"PREFECT_API_URL": server.api_url, "PREFECT_HOME": str(folder / "prefect")}
        with canned_server(folder) as url:
            for _ in range(rounds):
                for program, command in commands(source, url).items():
                    cost = measured(command, folder / "log")
                    costs[program].append(1000 * cost.processor_seconds / images)
                    speed = images / cost.wall_seconds
                    print(f"{program}: {costs[program][-1]:.2f} ms an image, {speed:.0f} images/s", flush=True)
                shutil.rmtree(folder / "outputs")
        server.stop()
    print(f"\nProcessor time an image, {images:,} images of {KILOBYTES} KB, {rounds} rounds, {IN_FLIGHT} in flight.")
    print(
        ", ".join(f"{package} {version(package)}" for package in ("prefect", "openai", "aiohttp", "pillow", "polars"))
    )
    print("| program | ms an image | flow ÷ it |\n|---|---|---|")
    for program, each in costs.items():
        ratios = [ours / theirs for ours, theirs in zip(costs["flow"], each, strict=True)]
        print(f"| {program} | {spread(each)} | {spread(ratios)} |")
    if chart:
        Path(chart).write_text(bars("Processor time an image", costs, "ms", ours="flow"))


def spread(values: list[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    images, rounds, chart = [*sys.argv[1:], *("20000", "3", "")[len(sys.argv) - 1 :]]
    main(int(images), int(rounds), chart)
