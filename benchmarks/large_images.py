"""Prepares 12-megapixel JPEGs with and without reduced decoding: `python -m benchmarks.large_images [images] [rounds]`.

Uses one thread per core, as in a run. A clock in the event loop shows the longest time that requests and answers had to
wait.
"""

import asyncio
import io
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from vllm_annotate.cores import usable_cores
from vllm_annotate.images.prepare import prepare, smart_resize
from vllm_annotate.recipe.image_budget import ImageBudget

BUDGET = ImageBudget(min_pixels=128 * 784, max_pixels=1_003_520)
SIZE = (4000, 3000)
TICK_SECONDS = 0.005


def in_full(folder: Path, name: str) -> None:
    """Decodes, resizes and encodes, without draft mode."""
    with Image.open(folder / name) as image:
        resized = image.convert("RGB").resize(smart_resize(*image.size, BUDGET), Image.Resampling.BICUBIC)
    resized.save(io.BytesIO(), "JPEG", quality=BUDGET.jpeg_quality)


def reduced(folder: Path, name: str) -> None:
    """Prepares an image as a run does."""
    prepare(folder, name, BUDGET)


async def measured(work: Callable[[Path, str], None], folder: Path, names: list[str]) -> tuple[float, float]:
    """Returns images per second, and the maximum lag of the event loop."""
    late = 0.0

    async def watch() -> None:
        nonlocal late
        while True:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            late = max(late, time.monotonic() - due)

    watching, loop = asyncio.create_task(watch()), asyncio.get_running_loop()
    with ThreadPoolExecutor(usable_cores()) as threads:
        begun = time.monotonic()
        await asyncio.gather(*(loop.run_in_executor(threads, work, folder, name) for name in names))
        seconds = time.monotonic() - begun
    watching.cancel()
    return len(names) / seconds, late


def main(images: int = 40, rounds: int = 5) -> None:
    """Prints medians and extremes."""
    with tempfile.TemporaryDirectory(prefix="large-images-") as name:
        folder, names = Path(name), [f"{number}.jpg" for number in range(images)]
        noise = Image.frombytes("RGB", (400, 300), random.Random(0).randbytes(400 * 300 * 3))
        noise.resize(SIZE, Image.Resampling.BICUBIC).save(folder / names[0], quality=88)
        for other in names[1:]:
            os.link(folder / names[0], folder / other)
        ratios, lates = [], []
        for _ in range(rounds):
            ours, late = asyncio.run(measured(reduced, folder, names))
            theirs, _ = asyncio.run(measured(in_full, folder, names))
            print(f"{ours:.1f} images/s, in full {theirs:.1f}; event loop late by {1000 * late:.0f} ms", flush=True)
            ratios.append(ours / theirs)
            lates.append(1000 * late)
    print(f"reduced ÷ in full: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
    print(f"event loop late by at most {statistics.median(lates):.0f} ms ({min(lates):.0f}–{max(lates):.0f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
