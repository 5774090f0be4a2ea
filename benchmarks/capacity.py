"""How full the server is kept: `python -m benchmarks.capacity [images] [rounds]`.

The server has 64 slots and each program 64 requests in flight; efficiency is the time that slots were held, over 64
times the time from the first request to the last answer. Two kinds of answers: all of 0.2 s; and log-normal around
0.2 s with 5 % stragglers of ten times that.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.client_cost import IN_FLIGHT, commands, draw, measured
from flows.prefect_server import TemporaryPrefectServer, free_port

ANSWERS = {"0.2 s": ("0.2", "0", "0"), "log-normal, 5 % stragglers": ("0.2", "0.3", "0.05")}


@contextmanager
def slots_server(*answers: str) -> Iterator[str]:
    """Its URL."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.slots_server", str(port), str(IN_FLIGHT), *answers])
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                look(url)
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def look(url: str) -> dict[str, float]:
    """What the slots did since the last look."""
    with urllib.request.urlopen(f"{url}/look", timeout=10) as response:  # noqa: S310 - loopback
        seen: dict[str, float] = json.load(response)
    return seen


def main(images: int = 10_000, rounds: int = 3) -> None:
    """Prints a line for each program and kind of answers: median and extremes."""
    with tempfile.TemporaryDirectory(prefix="capacity-") as name:
        folder = Path(name)
        source = draw(folder, images)
        prefect = TemporaryPrefectServer({"PREFECT_HOME": str(folder / "prefect")})
        prefect.wait_until_ready()
        os.environ |= {"PREFECT_API_URL": prefect.api_url, "PREFECT_HOME": str(folder / "prefect")}
        for kind, answers in ANSWERS.items():
            kept: dict[str, list[float]] = {}
            with slots_server(*answers) as url:
                for _ in range(rounds):
                    for program, command in commands(source, url).items():
                        look(url)
                        measured(command, folder / "log")
                        seen = look(url)
                        kept.setdefault(program, []).append(100 * seen["busy"] / IN_FLIGHT / seen["seconds"])
                    shutil.rmtree(folder / "outputs")
            for program, each in kept.items():
                middle = statistics.median(each)
                print(f"{kind}: {program:13} {middle:.1f} % ({min(each):.1f}–{max(each):.1f})", flush=True)
        prefect.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
