"""Measures Prefect's share of a long run's time, and the run's memory against a shorter run's.

`python -m benchmarks.long_run [images] [rounds]`. Canned answers, as in `benchmarks.client_cost`; in turn: the flow,
its engine without Prefect, and the flow over a tenth of the images. Memory is the peak from the end of the plan on,
which is before the first request. Both figures leave out what preparing images costs: these are small and
need no change.
"""

import os
import random
import shutil
import sys
from itertools import islice
from pathlib import Path

from PIL import Image

from benchmarks.canned_server import canned_server
from benchmarks.images import write_input
from benchmarks.programs import commands, measured, reporting_to_prefect, spread

DISTINCT, SIZE = 20, (448, 336)


def draw_small(folder: Path) -> list[Path]:
    """Small JPEGs that need no resizing."""
    folder.mkdir()
    paths = [folder / f"{number}.jpg" for number in range(DISTINCT)]
    rng = random.Random(0)
    for path in paths:
        noise = Image.frombytes("RGB", (56, 42), rng.randbytes(56 * 42 * 3))
        noise.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=80)
    return paths


def main(images: int = 100_000, rounds: int = 2) -> None:
    """Prints ratios within a round."""
    shares, growths = [], []
    with reporting_to_prefect("long-run-") as folder, canned_server(folder) as url:
        source = write_input(folder / "small", draw_small(folder / "drawn"), images)
        tenth = source.with_name("tenth.jsonl")
        with source.open("rb") as lines:
            tenth.write_bytes(b"".join(islice(lines, images // 10)))
        outputs = source.with_name("outputs")
        for _ in range(rounds):
            runs = {}
            for what, rows in (("flow", source), ("engine", source), ("tenth", tenth)):
                program = "engine" if what == "engine" else "flow"
                plan = outputs / f"{program}.work" / "plan.json"  # is written before the first request
                runs[what] = measured(commands(rows, url)[program], folder / "log", since=plan)
                shutil.rmtree(outputs)
                print(f"{what}: {runs[what]}", flush=True)
            shares.append(100 * (runs["flow"].wall_seconds / runs["engine"].wall_seconds - 1))
            growths.append(runs["flow"].peak_mebibytes / runs["tenth"].peak_mebibytes)
    size = "×".join(map(str, SIZE))
    print(f"{images:,} images of {size} that need no work, {os.cpu_count()} cores, canned answers, no model")
    print(f"Prefect's share of the time, %: {spread(shares)}")
    print(f"memory from the end of the plan on ÷ that over a tenth of the images: {spread(growths)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
