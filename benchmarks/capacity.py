"""Measures how busy each program keeps the server: `python -m benchmarks.capacity [images] [rounds]`.

The server has 64 slots and each program keeps 64 requests in flight. Efficiency is the time that slots are busy,
divided by 64 times the elapsed time: from the first request to the last answer, and to the last request, after which
slots cannot be filled. Answers take 0.2 s, or are log-normal around 0.2 s with 5 % stragglers of ten times that.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.programs import IN_FLIGHT, commands, draw, measured, reporting_to_prefect, spread
from flows.support.prefect_server import free_port

ANSWERS = {"0.2 s": ("0.2", "0", "0"), "log-normal, 5 % stragglers": ("0.2", "0.3", "0.05")}


@contextmanager
def slots_server(*answers: str) -> Iterator[str]:
    """Runs the server; yields its URL."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.slots_server", str(port), str(IN_FLIGHT), *answers])
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(url):
            if process.poll() is not None:
                raise SystemExit(f"the server of slots ended with {process.returncode}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        look(url)
    except OSError:
        return False
    return True


def look(url: str) -> dict[str, float]:
    """How busy the slots were since the last look."""
    with urllib.request.urlopen(f"{url}/look", timeout=10) as response:  # noqa: S310 - loopback
        seen: dict[str, float] = json.load(response)
    return seen


def main(images: int = 10_000, rounds: int = 3) -> None:
    """Prints a line per program and kind of answers: medians and extremes."""
    with reporting_to_prefect("capacity-") as folder:
        source = draw(folder, images)
        for kind, answers in ANSWERS.items():
            to_answer: dict[str, list[float]] = {}
            to_request: dict[str, list[float]] = {}
            with slots_server(*answers) as url:
                for _ in range(rounds):
                    for program, command in commands(source, url).items():
                        look(url)
                        measured(command, folder / "log")
                        seen = look(url)
                        to_answer.setdefault(program, []).append(seen["to_last_answer"])
                        to_request.setdefault(program, []).append(seen["to_last_request"])
                    shutil.rmtree(folder / "outputs")
            for program in to_answer:
                whole, fed = (spread([100 * share for share in each[program]]) for each in (to_answer, to_request))
                print(f"{kind}: {program:13} {whole} %; to the last request {fed} %", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
