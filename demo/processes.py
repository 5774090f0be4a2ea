"""Runs the stand-in as a process on loopback, and locates the tiny model."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.support.prefect_server import free_port

TINY_GROUNDER = Path(__file__).parent / "tiny_grounder"
TINY_GROUNDER_RECIPE = TINY_GROUNDER / "recipe.yaml"
TINY_GROUNDER_SERVER = TINY_GROUNDER / "server.yaml"
START_SECONDS = 60


@contextmanager
def stand_in(*options: str) -> Iterator[str]:
    """Runs the stand-in for vLLM until the context ends; yields its base URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "stand_in", "--port", str(port), *options])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers_at(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the stand-in did not start")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers_at(url: str) -> bool:
    """Whether the server at a base URL is healthy."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1):  # noqa: S310 - http on loopback
            return True
    except OSError:
        return False
