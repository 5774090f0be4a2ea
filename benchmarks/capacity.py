"""Measures how busy each program keeps the server: `python -m benchmarks.capacity [images] [rounds]`.

The server has 64 slots and each program keeps 64 requests in flight. Efficiency is the time that slots are busy,
divided by 64 times the elapsed time: from the first request to the last answer, and to the last request, after which
slots cannot be filled. Answers take 0.2 s, or are log-normal around 0.2 s with 5 % stragglers of ten times that: 320
or 220 images per second, which a client's processors must be able to prepare. Programs and server share this machine's.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.canned_server import MODEL
from benchmarks.images import LEFT_OUT, described, draw
from benchmarks.programs import IN_FLIGHT, commands, measured, reporting_to_prefect, spread
from demo.processes import stand_in
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


def main(images: int = 5000, rounds: int = 3) -> None:
    """Prints a line per input, kind of answers and program: medians and extremes."""
    print(f"{images:,} images, {rounds} rounds, {os.cpu_count()} cores; {LEFT_OUT}")
    with reporting_to_prefect("capacity-") as folder, stand_in("--model", MODEL) as looking:
        for what, source in draw(folder, images).items():
            print(f"input: {what}: {described(what)}")
            for kind, answers in ANSWERS.items():
                with slots_server(*answers, looking) as url:
                    _compare(f"{what}, {kind}", source, url, rounds)


def _compare(what: str, source: Path, url: str, rounds: int) -> None:
    to_answer: dict[str, list[float]] = {}
    to_request: dict[str, list[float]] = {}
    for _ in range(rounds):
        for program, command in commands(source, url).items():
            look(url)
            measured(command, source.with_name("log"))
            seen = look(url)
            to_answer.setdefault(program, []).append(100 * seen["to_last_answer"])
            to_request.setdefault(program, []).append(100 * seen["to_last_request"])
        shutil.rmtree(source.with_name("outputs"))
    for program in to_answer:
        whole, fed = spread(to_answer[program]), spread(to_request[program])
        print(f"{what}: {program:13} {whole} %; to the last request {fed} %", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
