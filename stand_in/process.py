"""Runs the stand-in as a process and controls it over HTTP."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from stand_in.ports import free_port

ROOT = Path(__file__).parent.parent


class StandIn:
    """A stand-in process: start, kill, set faults, count requests."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def started(cls, *options: str) -> Iterator[Self]:
        """Runs a stand-in until the context ends."""
        server = cls(*options)
        server.start()
        try:
            yield server
        finally:
            server.kill()

    @property
    def url(self) -> str:
        """Base URL, without /v1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Starts the process, also after a crash."""
        self.kill()
        command = [sys.executable, "-m", "stand_in", "--port", str(self.port), *self.options]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while wait and not self.answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError("the stand-in did not start")
            time.sleep(0.05)

    def renew(self) -> None:
        """Leaves nothing of what it was asked and told before: as after a start, which it takes only if it must."""
        if self._process is None or self._process.poll() is not None or not self.answers():
            self.start()
            return
        self.set_faults()
        deadline = time.monotonic() + 10
        while self._call("GET", "/load")["server_load"]:  # of clients that are gone
            if time.monotonic() > deadline:
                self.start()
                return
            time.sleep(0.02)
        self.forget()

    def kill(self) -> None:
        """Kills the process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        """Whether /health answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1):
                return True
        except OSError:
            return False

    def set_faults(self, *faults: dict[str, Any]) -> None:
        """Sets the faults of the next requests."""
        self._call("POST", "/stand_in/faults", list(faults))

    def asked(self) -> dict[str, int]:
        """Requests per caption."""
        texts: dict[str, int] = self._call("GET", "/stand_in/asked")["texts"]
        return {text.removeprefix("Caption: "): count for text, count in texts.items()}

    def images(self) -> dict[str, int]:
        """Requests per image, by its SHA-1."""
        images: dict[str, int] = self._call("GET", "/stand_in/asked")["images"]
        return images

    def proofs(self) -> int:
        """Requests of proofs, which the other counts leave out."""
        return int(self._call("GET", "/stand_in/asked")["proof"])

    def temperatures(self, caption: str) -> list[float]:
        """The temperatures of the requests for a caption, in order."""
        temperatures: dict[str, list[float]] = self._call("GET", "/stand_in/asked")["temperatures"]
        return temperatures[f"Caption: {caption}"]

    def most_at_once(self) -> int:
        """Maximum of requests that ran or waited at the same time."""
        return int(self._call("GET", "/stand_in/asked")["most_at_once"])

    def forget(self) -> None:
        """Resets the counts."""
        self._call("DELETE", "/stand_in/asked")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
