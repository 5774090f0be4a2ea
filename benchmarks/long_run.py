"""What a long run costs: Prefect's share of its time, and its memory beside a shorter one's.

`python -m benchmarks.long_run [images] [rounds]`. The same canned server and programs as in `benchmarks.client_cost`;
in turn the flow, its engine without Prefect, and the flow over a tenth of the images.
"""

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.canned_server import canned_server
from benchmarks.client_cost import commands, draw, measured
from flows.prefect_server import TemporaryPrefectServer


def main(images: int = 100_000, rounds: int = 2) -> None:
    """Prints ratios of the same round."""
    shares, growths = [], []
    with tempfile.TemporaryDirectory(prefix="long-run-") as name:
        folder = Path(name)
        source = draw(folder, images)
        tenth = folder / "tenth.jsonl"
        with source.open("rb") as lines:
            tenth.write_bytes(b"".join(line for line, _ in zip(lines, range(images // 10), strict=False)))
        prefect = TemporaryPrefectServer({"PREFECT_HOME": str(folder / "prefect")})
        prefect.wait_until_ready()
        os.environ |= {"PREFECT_API_URL": prefect.api_url, "PREFECT_HOME": str(folder / "prefect")}
        with canned_server(folder) as url:
            for _ in range(rounds):
                runs = {}
                for what, rows in (("flow", source), ("engine", source), ("tenth", tenth)):
                    program = "flow" if what == "tenth" else what
                    runs[what] = measured(commands(rows, url)[program], folder / "log")
                    shutil.rmtree(folder / "outputs")
                    print(f"{what}: {runs[what]}", flush=True)
                shares.append(100 * (runs["flow"].wall_seconds / runs["engine"].wall_seconds - 1))
                growths.append(runs["flow"].peak_mebibytes / runs["tenth"].peak_mebibytes)
        prefect.stop()
    print(f"Prefect's share of the time: {statistics.median(shares):.1f} % ({min(shares):.1f}–{max(shares):.1f})")
    growth = statistics.median(growths)
    print(f"memory ÷ that over a tenth of the images: {growth:.2f} ({min(growths):.2f}–{max(growths):.2f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
