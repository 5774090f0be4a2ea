"""The process of a temporary Prefect server that waits to be told where to serve."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.support.server_launcher import WITHOUT_SETTINGS
from flows.support.server_process import LAUNCHER, ServerProcess
from tests.conftest import ROOT


def test_a_process_that_is_not_needed_ends_at_once() -> None:
    with ServerProcess() as waiting:
        assert waiting.process.poll() is None
    assert waiting.process.returncode is not None
    assert waiting.log.closed


def test_a_process_that_nobody_will_tell_ends_without_a_word() -> None:
    ours, its_end = socket.socketpair()
    ours.close()
    with its_end:
        done = subprocess.run(
            [sys.executable, "-P", LAUNCHER], stdin=its_end.fileno(), capture_output=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_it_ends_with_a_run_that_is_killed_before_it_is_told() -> None:
    program = (
        "import os; from flows.support.server_process import ServerProcess; "
        "print(ServerProcess().process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    process = Path("/proc", killed.stdout.strip())
    deadline = time.monotonic() + 20
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.exists()


def test_it_has_neither_settings_of_prefect_nor_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_KEY", "PREFECT_HOME", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "secret")
    with ServerProcess() as waiting:
        environment = Path(f"/proc/{waiting.process.pid}/environ")
        while not (variables := environment.read_text()):  # for a moment of its start
            assert waiting.process.poll() is None
    assert "PATH=" in variables
    assert "secret" not in variables


def test_what_it_imports_beforehand_exists_and_is_not_prefect() -> None:
    program = (
        f"import importlib, sys\nfor name in {WITHOUT_SETTINGS}: importlib.import_module(name)\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.partition(".")[0] in ("prefect", "flows", "blocks")]
