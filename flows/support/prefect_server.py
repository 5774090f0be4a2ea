"""Runs a Prefect server for one command, if you have none.

Prefect's own ephemeral server starts late, logs noisily, has no UI, and stops before the last task runs are recorded.
This one starts during the run's checks and stops once everything is recorded.
"""

import atexit
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from flows.support.loopback import LOOPBACK
from flows.support.prefect_home import PrefectHome, home_for, temporary_home
from flows.support.server_process import ServerProcess

START_SECONDS = 120  # the first start creates the database: 10 s on two cores
RECORD_SECONDS = 60
POLL_SECONDS = 0.05
CAUSES = {  # what a server's log has → why it did not start
    "Can't locate revision": "its database was made by a newer Prefect",
    "database or disk is full": "its disk is full",
    "No space left": "its disk is full",
    "file is not a database": "its database is damaged",
    "malformed": "its database is damaged",
    "readonly database": "its database is read-only",
}


class TemporaryPrefectServer:
    """`prefect server start` on loopback, with your Prefect database if it can be used.

    With a PREFECT_HOME in `settings`, it uses that home or fails.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, port: int | None = None, process: ServerProcess | None = None
    ) -> None:
        """Starts it, in a `process` that waits for that, if there is one.

        Raises OSError if there is not even room for its log.
        """
        from flows.support.prefect_environment import database_settings, users_home

        self.given_up = threading.Event()  # set it to stop waiting
        self.is_ready = False
        self._port = port or free_port()
        self._client = httpx.Client(base_url=self.api_url, timeout=5, trust_env=False)
        self._held = ExitStack()
        self._settings = dict(settings or {})
        if given := self._settings.get("PREFECT_HOME"):
            Path(given).mkdir(parents=True, exist_ok=True)
            self.home = PrefectHome(Path(given))
        else:
            self.home = home_for(users_home(), self._held)
            self._settings = ({} if self.home.is_temporary else database_settings()) | self._settings
        self._may_move = not given and not self.home.is_temporary
        self._start(process or ServerProcess())
        # Prefect sends its last events when threading shuts down, which is before atexit.
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Base URL of the UI."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def api_url(self) -> str:
        """The value for PREFECT_API_URL."""
        return f"{self.url}/api"

    def _start(self, process: ServerProcess) -> None:
        from flows.support.prefect_environment import server_settings

        self._turn = os.open(self.home.path / "vllm-annotate.start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._process, self._log = process.process, self._held.enter_context(process.log)
        settings = server_settings(self.home.path, self._port, self._settings)
        process.serve(self.home.path, self._port, settings, self._turn)

    def wait_until_ready(self) -> None:
        """Waits until the server answers or `given_up` is set. Raises RuntimeError with the reason if it fails.

        A server that does not start with your database gets one of its own; `home.note` then says so.
        """
        if self._answered():
            self.is_ready = True
            return
        reason = self._why_not()
        if self._may_move:
            self._may_move = False
            self.home = temporary_home(self._held, f"Prefect cannot use its home {self.home.path}: {reason}")
            self._settings = {}
            self._start(ServerProcess())
            if self._answered():
                self.is_ready = True
                return
            reason = self._why_not()
        raise RuntimeError(f"the temporary Prefect server did not start: {reason}")

    def _answered(self) -> bool:
        """Whether the server answers before it ends or its time is up; true also when given up."""
        deadline = time.monotonic() + START_SECONDS
        try:
            while time.monotonic() < deadline and self._process.poll() is None:
                if self._ask("GET", "/ready") is not None or self.given_up.wait(POLL_SECONDS):
                    return True
                if not self._has_its_turn():
                    deadline = time.monotonic() + START_SECONDS
            return False
        finally:
            self._let_others_start()

    def _has_its_turn(self) -> bool:
        return os.pread(self._turn, 20, 0).strip() == str(self._process.pid).encode()

    def _let_others_start(self) -> None:
        if self._has_its_turn():  # else it would take the turn of another
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        os.close(self._turn)

    def _why_not(self) -> str:
        """Ends the process; the reason in its log."""
        still_runs = self._process.poll() is None
        self._process.kill()
        self._process.wait()
        self._log.seek(0)
        output = self._log.read().decode(errors="replace")
        for text, cause in CAUSES.items():
            if text in output:
                return cause
        if still_runs:
            return f"no answer within {START_SECONDS} s"
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return f"{lines[-1]:.200}" if lines else f"it ended with code {self._process.returncode}"

    def stop(self) -> None:
        """Waits until all task runs are recorded, then stops the server. Idempotent."""
        atexit.unregister(self.stop)
        with _ignoring_ctrl_c(), self._held, closing(self._client):  # this takes seconds
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

    def _wait_until_recorded(self) -> None:
        """Waits while the count grows: task states arrive as events, up to 20 s late per thousand tasks."""
        deadline = time.monotonic() + RECORD_SECONDS
        recorded, still = -1, 0
        while time.monotonic() < deadline and still < 4:
            time.sleep(0.25)
            ended = {"task_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}}
            now = self._ask("POST", "/task_runs/count", ended)
            still = still + 1 if now == recorded else 0
            recorded = now

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer; None if there is none."""
        try:
            return self._client.request(method, path, json=body).raise_for_status().json()
        except (httpx.HTTPError, ValueError):
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
    """Whether anything answers at `api_url`; what it is, says `prefect_api.check_api`."""
    try:
        httpx.get(f"{api_url.rstrip('/')}/health", timeout=5, trust_env=httpx.URL(api_url).host not in LOOPBACK)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True
