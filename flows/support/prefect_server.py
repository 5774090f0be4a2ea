"""Runs a Prefect server for one command, if you have none.

Prefect's own ephemeral server starts late, logs noisily, has no UI, and stops before the last task runs are recorded.
This one starts during the run's checks and stops once everything is recorded.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

START_SECONDS = 120  # the first start creates the database: 10 s on two cores
RECORD_SECONDS = 60
POLL_SECONDS = 0.05

# Stops the server with its parent, even if that is killed, then runs `prefect server start` in the same process.
LAUNCHER = """
import ctypes, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
sys.argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", sys.argv[1]]
runpy.run_module("prefect", run_name="__main__")
"""


class TemporaryPrefectServer:
    """`prefect server start` on loopback, with your Prefect database unless `settings` change that."""

    def __init__(self, settings: Mapping[str, str] | None = None, port: int | None = None) -> None:
        self.given_up = threading.Event()  # set it to stop waiting
        self._port = port or free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        environment = os.environ | {
            # Without these the UI calls port 4200, whatever --port says.
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self._port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            **(settings or {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(self._port)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run; the server records how it ended
        )
        # Prefect sends its last events when threading shuts down, which is before atexit.
        atexit.register(self.stop)

    @property
    def url(self) -> str:
        """Base URL of the UI."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def api_url(self) -> str:
        """The value for PREFECT_API_URL."""
        return f"{self.url}/api"

    def wait_until_ready(self) -> None:
        """Waits until the server answers or `given_up` is set. Raises RuntimeError with its output if it fails."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._get("/health") is True:
                return
            if self.given_up.wait(POLL_SECONDS):
                return
        self._log.seek(0)
        output = self._log.read().decode(errors="replace").strip()[-2000:]
        raise RuntimeError(f"the temporary Prefect server did not start: {output}")

    def stop(self) -> None:
        """Waits until all task runs are recorded, then stops the server. Idempotent."""
        atexit.unregister(self.stop)
        with _ignoring_ctrl_c():  # this takes seconds
            self._stop()

    def _stop(self) -> None:
        if self._process.poll() is None:
            if not self.given_up.is_set():
                self._wait_until_recorded()
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _wait_until_recorded(self) -> None:
        """Waits while the count grows: task states arrive as events, up to 20 s late per thousand tasks."""
        deadline = time.monotonic() + RECORD_SECONDS
        recorded, still = -1, 0
        while time.monotonic() < deadline and still < 4:
            time.sleep(0.25)
            now = self._get("/task_runs/count", {"task_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}})
            still = still + 1 if now == recorded else 0
            recorded = now

    def _get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - always http on loopback
            self.api_url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
                return json.load(response)
        except (OSError, ValueError):
            return None


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)  # later child processes would inherit SIG_IGN


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(api_url: str) -> bool:
    """Whether a Prefect API answers at `api_url`."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=5) as response:  # noqa: S310
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        return True  # needs authentication, which Prefect's client does
    except (OSError, ValueError):
        return False
