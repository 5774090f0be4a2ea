"""Measures Prefect's share of a long run's time, and the run's memory against a shorter run's.

`python -m benchmarks.long_run [images] [rounds]`. The same canned server and programs as in `benchmarks.client_cost`;
in turn: the flow, its engine without Prefect, and the flow over a tenth of the images.
"""

import shutil
import sys
from itertools import islice

from benchmarks.canned_server import canned_server
from benchmarks.programs import commands, draw, measured, reporting_to_prefect, spread


def main(images: int = 100_000, rounds: int = 2) -> None:
    """Prints ratios within a round."""
    shares, growths = [], []
    with reporting_to_prefect("long-run-") as folder, canned_server(folder) as url:
        source, tenth = draw(folder, images), folder / "tenth.jsonl"
        with source.open("rb") as lines:
            tenth.write_bytes(b"".join(islice(lines, images // 10)))
        for _ in range(rounds):
            runs = {}
            for what, program, rows in (
                ("flow", "flow", source),
                ("engine", "engine", source),
                ("tenth", "flow", tenth),
            ):
                runs[what] = measured(commands(rows, url)[program], folder / "log")
                shutil.rmtree(folder / "outputs")
                print(f"{what}: {runs[what]}", flush=True)
            shares.append(100 * (runs["flow"].wall_seconds / runs["engine"].wall_seconds - 1))
            growths.append(runs["flow"].peak_mebibytes / runs["tenth"].peak_mebibytes)
    print(f"Prefect's share of the time, %: {spread(shares)}")
    print(f"memory ÷ that over a tenth of the images: {spread(growths)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
