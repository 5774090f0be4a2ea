"""Shared by the benchmarks: the programs to compare, and the cost of a process."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.canned_server import MODEL
from flows.support.prefect_server import TemporaryPrefectServer
from vllm_annotate.recipe.families import resolve_family
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe

IN_FLIGHT = 64
PEERS = Path(".venv-peers")  # one virtual environment each: `make bench-peers`


def commands(source: Path, url: str) -> dict[str, list[str]]:
    """The command line of each program and each installed peer; outputs are in a folder beside the input."""
    images, outputs = source.with_name("images"), source.with_name("outputs")
    outputs.mkdir(exist_ok=True)
    request = source.with_name("request.json")
    template = RequestTemplate(Recipe(), resolve_family("auto", MODEL), MODEL)
    request.write_bytes(template.body("{caption}", b"data:image/jpeg;base64,"))
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
    peak_mebibytes: float  # of the process alone


def measured(command: list[str], log: Path, since: Path | None = None) -> Cost:
    """Runs a command and returns its cost; its peak memory counts once the file `since` exists."""
    begun = time.monotonic()
    with log.open("wb") as file:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)],
        )
    peak, counts = 0.0, since is None
    while (ended := os.wait4(pid, os.WNOHANG))[0] == 0:
        if not counts and since is not None and since.exists():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM
            counts = True
        peak = max(peak, peak_mebibytes(pid)) if counts else peak
        time.sleep(0.02)
    _, status, usage = ended
    if status:
        raise SystemExit(f"{' '.join(command[:3])} failed: {log.read_text()[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - begun, peak)


def peak_mebibytes(pid: int) -> float:
    """The peak resident set of a process; 0 while it ends."""
    _, found, rest = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")
    return int(rest.split()[0]) / 1024 if found else 0


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
