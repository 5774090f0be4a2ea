"""Audits tiny-grounder on a real vLLM on CPU: `python -m benchmarks.audit [scenes] [sample]`, scenes of three shapes.

The truth of every second pair of scenes is known to the audit. Prints how well agreement tells right boxes from wrong
ones, and whether the interval of the audit holds the precision of the whole output against the truth of all. It leaves
out large models, photos and captions that people wrote.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tiny_grounder import tiny_grounder
from demo.processes import TINY_GROUNDER_RECIPE
from demo.scenes import write_small_folder

COMMAND = Path(sys.executable).with_name("vllm-annotate")
ASKS = 4


def run(*arguments: object) -> str:
    """Runs a command of vllm-annotate; returns what it prints."""
    ran = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(ran.stdout + ran.stderr)
    return ran.stdout


def audited(folder: Path, scenes: int, sample: int, url: str) -> tuple[dict[str, Any], float]:
    """Returns the calibration of an audit, and the true precision of the whole output."""
    source, truth = write_small_folder(folder, scenes, shapes=3)
    known = folder / "known.jsonl"
    # Captions alternate between Chinese and English: pairs, so that the known half is like the whole.
    lines = truth.read_text().splitlines(keepends=True)
    known.write_text("".join(line for number, line in enumerate(lines) if number // 2 % 2 == 0))
    output, server = folder / "labeled.jsonl", ("--api-base", url)
    images = ("--image-root", folder / "images")
    run("annotate", "--input", source, "--output", output, *images, *server, "--recipe", TINY_GROUNDER_RECIPE,
        "--without-prefect")  # fmt: skip
    found = json.loads(
        run("audit", "--output", output, "--sample", sample, "--asks", ASKS, "--truth", known, "--json", *server)
    )
    scores = json.loads(run("evaluate", "--output", output, "--truth", truth, "--json"))
    return found["calibration"], scores["precision"]["0.5"]


async def main(scenes: int = 400, sample: int = 200) -> None:
    """Runs the benchmark."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # vLLM on CPU ends when it discards a token of a seeded request, as it does of prompts prefilled in pieces.
        async with tiny_grounder(folder, "--no-enable-chunked-prefill") as server:
            calibration, precision = await asyncio.to_thread(audited, folder, scenes, sample, server.url)
    low, high = calibration["precision_interval"]
    print(f"{calibration['boxes']} boxes with a known truth, asked {ASKS} times more")
    print(f"AUROC of agreement for IoU of at least 0.5: {calibration['auroc']:.3f}")
    held = "holds" if low <= precision <= high else "does not hold"
    print(f"precision {calibration['precision']:.3f} ({low:.3f} to {high:.3f}) {held} the true {precision:.3f}")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
