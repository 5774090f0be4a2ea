"""Measures the client's CPU time per image: this project's flow, a typical script, and the lower limit.

`python -m benchmarks.client_cost [images] [rounds] [chart.svg]`. 64 requests in flight, JPEGs of about 92 KB that need
no resizing, canned answers from nginx; the programs run in turn, each as a separate process.
"""

import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.bars import bars
from benchmarks.canned_server import canned_server
from benchmarks.programs import IN_FLIGHT, KILOBYTES, commands, draw, measured, reporting_to_prefect, spread

NAMES = {"flow": "this flow", "engine": "the same without Prefect", "script": "AsyncOpenAI and a semaphore"}


def main(images: int, rounds: int, chart: str) -> None:
    """Prints a table of medians, extremes and ratios within a round; writes an SVG to `chart`."""
    costs: dict[str, list[float]] = {}
    with reporting_to_prefect("client-cost-") as folder, canned_server(folder) as url:
        source = draw(folder, images)
        for _ in range(rounds):
            for program, command in commands(source, url).items():
                cost = measured(command, folder / "log")
                each = costs.setdefault(program, [])
                each.append(1000 * cost.processor_seconds / images)
                print(f"{program}: {each[-1]:.2f} ms per image, {images / cost.wall_seconds:.0f} images/s", flush=True)
            shutil.rmtree(folder / "outputs")
    print(f"\nCPU time per image, {images:,} images of {KILOBYTES} KB, {rounds} rounds, {IN_FLIGHT} in flight.")
    pinned = re.findall(r"(datatrove)==(\S+)", Path("benchmarks/peers/requirements-datatrove.txt").read_text())
    used = [(package, version(package)) for package in ("prefect", "openai", "aiohttp", "pillow", "polars")]
    print(", ".join(f"{package} {number}" for package, number in used + [peer for peer in pinned if peer[0] in costs]))
    print("| program | ms per image | flow ÷ it |\n|---|---|---|")
    for program, each in costs.items():
        ratios = [ours / theirs for ours, theirs in zip(costs["flow"], each, strict=True)]
        print(f"| {program} | {spread(each)} | {spread(ratios)} |")
    if chart:
        names = NAMES | {peer: f"{peer} {number}" for peer, number in pinned}
        named = {names.get(program, program): each for program, each in costs.items()}
        title = f"Processor time an image of {KILOBYTES} KB, beside the model's: less is better"
        Path(chart).write_text(bars(title, named, "ms", ours=NAMES["flow"]))


if __name__ == "__main__":
    images, rounds, chart = [*sys.argv[1:], *("20000", "3", "")[len(sys.argv) - 1 :]]
    main(int(images), int(rounds), chart)
