"""Measures the time from the command to the first request without a Prefect server: ours, and Prefect's ephemeral mode.

`python -m benchmarks.startup`. Both run the same flow on the same input against the same stand-in, in turn.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from demo.processes import stand_in
from demo.scenes import write_small_folder

ROUNDS = 5
EPHEMERAL = """
import asyncio, sys
from pathlib import Path
from prefect import Flow
from blocks import VLLMServer
from flows.annotate import annotate_images
folder, url, output = sys.argv[1:]
asyncio.run(Flow.__call__(  # our flows would start the same server as the command
    annotate_images, input=Path(folder, "input.jsonl"), image_root=Path(folder, "images"), output=Path(output),
    server=VLLMServer(endpoints=[f"{url}/v1"]),
))
"""


def seconds_to_first_request(command: list[str], url: str, home: Path) -> float:
    """Runs the command; returns the seconds until its first request."""
    urllib.request.urlopen(urllib.request.Request(f"{url}/stand_in/asked", method="DELETE")).close()  # noqa: S310
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    quiet = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
             "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}  # fmt: skip
    started = time.time()
    subprocess.run(command, env=environment | quiet, check=True, capture_output=True)
    with urllib.request.urlopen(f"{url}/stand_in/asked") as response:  # noqa: S310 - http on loopback
        return float(json.load(response)["first_at"]) - started


def seconds_of_help() -> list[float]:
    """The seconds that `vllm-annotate annotate --help` takes."""
    command = [str(Path(sys.executable).with_name("vllm-annotate")), "annotate", "--help"]
    seconds = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.monotonic() - started)
    return seconds


def main() -> None:
    """Prints medians and spreads, and the ratio of each pair."""
    shown = seconds_of_help()
    print(f"--help                       median {statistics.median(shown):5.2f} s  ({min(shown):.2f}–{max(shown):.2f})")
    with tempfile.TemporaryDirectory() as name, stand_in() as url:
        folder = Path(name)
        write_small_folder(folder, 4, 1)
        times: dict[str, list[float]] = {"ours, first run of all": [], "ephemeral, first run of all": []}
        times |= {"ours": [], "ephemeral": []}
        for number in range(ROUNDS):
            for kind in ("ours", "ephemeral"):
                home = folder / f"{kind}-home-{number}"
                for label in (f"{kind}, first run of all", kind):
                    output = str(folder / f"{kind}-{number}-{len(times[label])}-{label.count(',')}.jsonl")
                    ours = ["-m", "flows.annotate", "--input", f"{folder}/input.jsonl", "--image-root",
                            f"{folder}/images", "--output", output, "--api-base", f"{url}/v1"]  # fmt: skip
                    arguments = ours if kind == "ours" else ["-c", EPHEMERAL, str(folder), url, output]
                    times[label].append(seconds_to_first_request([sys.executable, *arguments], url, home))
    for label, seconds in times.items():
        print(f"{label:28} median {statistics.median(seconds):5.1f} s  ({min(seconds):.1f}–{max(seconds):.1f})")
    ratios = [ours / ephemeral for ours, ephemeral in zip(times["ours"], times["ephemeral"], strict=True)]
    print(f"ours / ephemeral: median {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


if __name__ == "__main__":
    main()
