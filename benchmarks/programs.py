"""Shared by the benchmarks: the images, the programs to compare, and the cost of a process."""

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import orjson
from PIL import Image

from benchmarks.canned_server import MODEL
from flows.support.prefect_server import TemporaryPrefectServer
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.recipe.families import resolve_family
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe

IN_FLIGHT, DISTINCT, SIZE, KILOBYTES = 64, 50, (924, 700), 92
PEERS = Path(".venv-peers")  # one virtual environment each: `make bench-peers`


def draw(folder: Path, count: int) -> Path:
    """Writes the input: `count` rows with unique names for DISTINCT images."""
    images = folder / "images"
    images.mkdir()
    rng = random.Random(0)
    for number in range(min(count, DISTINCT)):
        noise = Image.frombytes("RGB", (84, 64), rng.randbytes(84 * 64 * 3)).resize(SIZE, Image.Resampling.BICUBIC)
        quality = next(quality for quality in range(95, 5, -1) if _saved(noise, images / f"{number:06d}.jpg", quality))
        assert quality  # noqa: S101 - the loop above reaches the size
    for number in range(DISTINCT, count):
        os.link(images / f"{number % DISTINCT:06d}.jpg", images / f"{number:06d}.jpg")
    rows = (
        {"image_path": f"{number:06d}.jpg", "caption": f"a row of things, number {number}"} for number in range(count)
    )
    source = folder / "input.jsonl"
    source.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return source


def _saved(image: Image.Image, path: Path, quality: int) -> bool:
    image.save(path, quality=quality)
    return path.stat().st_size <= KILOBYTES * 1024


def commands(source: Path, url: str) -> dict[str, list[str]]:
    """The command line of each program and each installed peer; outputs are in a folder beside the input."""
    images, outputs = source.with_name("images"), source.with_name("outputs")
    outputs.mkdir(exist_ok=True)
    request = source.with_name("request.json")
    template = RequestTemplate(Recipe(), resolve_family("auto", MODEL), MODEL)
    request.write_bytes(template.body("{caption}", PreparedImage(b"", *SIZE, *SIZE).url()))
    flow: tuple[object, ...] = (
        "--input", source, "--image-root", images, "--output", outputs / "flow.jsonl",
        "--api-base", f"{url}/v1", "--max-concurrency", IN_FLIGHT,
    )  # fmt: skip

    def others(program: str) -> list[str]:
        return list(map(str, (source, images, outputs / f"{program}.jsonl", url, IN_FLIGHT)))

    ours = {
        "flow": ["-m", "flows.annotate", *map(str, flow)],
        "engine": ["-m", "benchmarks.clients.engine", *others("engine")],
        "script": ["-m", "benchmarks.clients.script", *others("script")],
        "bare aiohttp": ["-m", "benchmarks.clients.bare", *others("bare")],
    }
    peers = {
        peer: [str(PEERS / peer / "bin" / "python"), f"benchmarks/peers/{peer}_job.py", *others(peer), str(request)]
        for peer in ("datatrove",)
        if (PEERS / peer / ".installed").exists()
    }
    return {program: [sys.executable, *arguments] for program, arguments in ours.items()} | peers


class Cost(NamedTuple):
    """The cost of a process and its children."""

    processor_seconds: float
    wall_seconds: float
    peak_mebibytes: float


def measured(command: list[str], log: Path) -> Cost:
    """Runs a command and returns its cost."""
    begun = time.monotonic()
    with log.open("wb") as file:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)],
        )
        _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:3])} failed: {log.read_text()[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - begun, usage.ru_maxrss / 1024)


@contextmanager
def reporting_to_prefect(prefix: str) -> Iterator[Path]:
    """Yields a temporary folder; flows that start inside the context report to a Prefect server."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        home = str(Path(name, "prefect"))
        server = TemporaryPrefectServer({"PREFECT_HOME": home})
        try:
            server.wait_until_ready()
            os.environ |= {"PREFECT_API_URL": server.api_url, "PREFECT_HOME": home}
            yield Path(name)
        finally:
            server.stop()


def spread(values: list[float]) -> str:
    """Median, minimum and maximum, as text."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
