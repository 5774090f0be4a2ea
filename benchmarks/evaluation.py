"""Measures `evaluate` on drawn rows: `python -m benchmarks.evaluation [images] [names]`.

Both files have the images in a random order, six boxes each, and answers miss, shift and add boxes. Printed are the
time and the peak memory of the command's own process.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

BOXES = 6


def draw(folder: Path, images: int, names: int) -> None:
    """Writes truth.jsonl and labeled.jsonl."""
    rng = random.Random(0)
    _write(folder / "truth.jsonl", images, lambda seed: _row(seed, _objects(random.Random(seed), names)), rng)
    _write(folder / "labeled.jsonl", images, lambda seed: _answer(seed, names), rng)


def _write(path: Path, images: int, row: Any, rng: random.Random) -> None:
    order: Iterable[int] = rng.sample(range(images), images)
    with path.open("wb") as file:
        for seed in order:
            file.write(orjson.dumps(row(seed)) + b"\n")


def _row(seed: int, objects: list[dict[str, Any]]) -> dict[str, Any]:
    return {"image_path": f"{seed // 10_000:05d}/{seed:09d}.jpg", "objects": objects}


def _objects(rng: random.Random, names: int) -> list[dict[str, Any]]:
    found = []
    for _ in range(BOXES):
        x, y = rng.randrange(700), rng.randrange(700)
        box = [x, y, x + rng.randrange(20, 300), y + rng.randrange(20, 300)]
        found.append({"name": f"name {int(names * rng.random() ** 3)}", "bbox": box})
    return found


def _answer(seed: int, names: int) -> dict[str, Any]:
    objects = _objects(random.Random(seed), names)[seed % 2 :]
    for item in objects[1::2]:
        item["bbox"] = [side + 10 for side in item["bbox"][:2]] + item["bbox"][2:]
        item["bbox"][2] = max(item["bbox"][2], item["bbox"][0] + 1)
        item["bbox"][3] = max(item["bbox"][3], item["bbox"][1] + 1)
    text = str(objects)  # as long as a model's
    fields = {"caption": "a caption of some words", "vlm_output": text, "annotations": {"rationale": text}}
    return _row(seed, objects) | fields | {"width": 640, "height": 480}


def main(images: int = 1_000_000, names: int = 5000) -> None:
    """Draws the files and prints what the command takes."""
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        draw(folder, images, names)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
        print(f"{images:,} images, {BOXES} boxes each, {names:,} names, {size:.2f} GB, {os.cpu_count()} cores")
        code = "from vllm_annotate.cli.start import start; start()"
        paths = ["--output", str(folder / "labeled.jsonl"), "--truth", str(folder / "truth.jsonl")]
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, "-c", code, "evaluate", *paths], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None  # noqa: S101 - for the type checker
        print(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        print(f"{seconds:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of processor, {usage.ru_maxrss >> 10} MiB")
        raise SystemExit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
