"""Measures the client's CPU time per image: this project's flow, a typical script, and the lower limit.

`python -m benchmarks.client_cost [images] [rounds] [chart.svg]`. 64 requests in flight, canned answers from nginx; the
programs run in turn, each as a separate process, first over a mix of images as the web has them, then over its part
that needs no resizing. The flow includes its start and its report. The script, bare aiohttp and datatrove send every
file as it is, unchecked, and leave the decoding to the server.
"""

import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.bars import bars
from benchmarks.canned_server import canned_server
from benchmarks.images import LEFT_OUT, described, draw
from benchmarks.programs import IN_FLIGHT, commands, measured, reporting_to_prefect, spread

NAMES = {"flow": "this flow", "engine": "the same without Prefect", "script": "AsyncOpenAI and a semaphore"}
Costs = dict[str, list[float]]


def main(images: int, rounds: int, chart: str) -> None:
    """Prints a table of medians, extremes and ratios within a round for each input; writes an SVG to `chart`."""
    found: dict[str, Costs] = {}
    with reporting_to_prefect("client-cost-") as folder, canned_server(folder) as url:
        for what, source in draw(folder, images).items():
            costs = found.setdefault(what, {})
            for _ in range(rounds):
                for program, command in commands(source, url).items():
                    cost = measured(command, folder / "log")
                    each = costs.setdefault(program, [])
                    each.append(1000 * cost.processor_seconds / images)
                    rate = images / cost.wall_seconds
                    print(f"{what}: {program}: {each[-1]:.2f} ms per image, {rate:.0f} images/s", flush=True)
                shutil.rmtree(source.with_name("outputs"))
    pinned = re.findall(r"(datatrove)==(\S+)", Path("benchmarks/peers/requirements-datatrove.txt").read_text())
    print(f"\nCPU time per image: {images:,} images, {rounds} rounds, {IN_FLIGHT} in flight; {LEFT_OUT}.")
    used = [(package, version(package)) for package in ("prefect", "openai", "aiohttp", "pillow", "polars")]
    print(", ".join(f"{package} {number}" for package, number in used + pinned))
    for what, costs in found.items():
        _print_table(what, costs)
    if chart:
        names = NAMES | {peer: f"{peer} {number}" for peer, number in pinned}
        named = {
            what: {names.get(program, program): each for program, each in costs.items()}
            for what, costs in found.items()
        }
        title = "Processor time an image, beside the model's: less is better"
        Path(chart).write_text(bars(title, named, "ms", ours=NAMES["flow"]))


def _print_table(what: str, costs: Costs) -> None:
    print(f"\nInput: {what}: {described(what)}.\n\n| program | ms per image | flow ÷ it |\n|---|---|---|")
    for program, each in costs.items():
        ratios = [ours / theirs for ours, theirs in zip(costs["flow"], each, strict=True)]
        print(f"| {program} | {spread(each)} | {spread(ratios)} |")


if __name__ == "__main__":
    images, rounds, chart = [*sys.argv[1:], *("10000", "3", "")[len(sys.argv) - 1 :]]
    main(int(images), int(rounds), chart)
