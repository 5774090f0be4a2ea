"""The servers of the demo: each a process of its own, on loopback, ended with the context."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.prefect_server import free_port

HERE = Path(__file__).parent
TINY_GROUNDER = HERE / "tiny_grounder"
TINY_GROUNDER_RECIPE = TINY_GROUNDER / "recipe.yaml"


@contextmanager
def stand_in() -> Iterator[str]:
    """The stand-in for vLLM; yields its base URL."""
    port = free_port()
    with _serving([sys.executable, "-m", "tests.stand_in", "--port", str(port)], port, None, {}) as url:
        yield url


@contextmanager
def vllm_on_cpu(venv: Path, log: Path, *options: str) -> Iterator[str]:
    """A real `vllm serve` of the tiny grounder; yields its base URL once it is healthy, which takes half a minute."""
    port = free_port()
    command = [
        str(venv / "bin" / "vllm"), "serve", str(TINY_GROUNDER), "--served-model-name", "tiny-grounder",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--enforce-eager",
        "--max-model-len", "4096", "--max-num-seqs", "32",
        "--limit-mm-per-prompt", '{"image": 1, "video": 0}', "--mm-processor-cache-gb", "0",
        "--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": false}', *options,
    ]  # fmt: skip
    environment = {
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    with _serving(command, port, log, environment, start_seconds=300) as url:
        yield url


@contextmanager
def _serving(
    command: Sequence[str], port: int, log: Path | None, environment: Mapping[str, str], start_seconds: float = 60
) -> Iterator[str]:
    """Runs a server in a process group of its own (vLLM's workers outlive a killed parent) and waits for its health."""
    url = f"http://127.0.0.1:{port}"
    output = log.open("wb") if log else None
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + start_seconds
        while not answers_at(url):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:] if log else ""
                raise RuntimeError(f"{command[0]} did not come up: {tail}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if output is not None:
            output.close()


def answers_at(url: str) -> bool:
    """Whether the server at a base URL is healthy."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1):  # noqa: S310 - http on loopback
            return True
    except OSError:
        return False
