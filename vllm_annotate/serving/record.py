"""What is known on this machine of the servers that runs have started: who leads them, and who uses them.

A file a port in the user's state folder outlives every run, so that a server left by a killed one is found again.
"""

import fcntl
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vllm_annotate.serving.guardian import TERMINATE_SECONDS, boot_id, kill, process_groups, start_ticks
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.state_folder import state_folder

KILL_SECONDS = 10


def record_path(port: int) -> Path:
    """Where the record of the server on a port lies; folders made. Home folders can be shared between machines."""
    folder = state_folder() / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{socket.gethostname()}-{port}.json"


@dataclass(frozen=True)
class ServerRecord:
    """A server that a run has started: its guardian, which leads its process group."""

    pid: int
    boot: str  # the machine's, since which
    started: int  # clock ticks since boot: a process of the same number is another one
    command: list[str]
    keep: bool
    log: Path

    @property
    def is_alive(self) -> bool:
        """Whether the guardian runs, and with it the server."""
        return self.boot == boot_id() and start_ticks(self.pid) == self.started

    @property
    def group(self) -> list[int]:
        """The processes of the server. When the guardian was killed they go on without it."""
        if self.is_alive:
            return [pid for pid, group in process_groups() if group == self.pid]
        if self.boot != boot_id() or start_ticks(self.pid) is not None:
            return []  # the number is another process's by now
        # A group can even have the number of one that is long gone: only what calls itself vLLM is taken for ours.
        return [pid for pid, group in process_groups() if group == self.pid and b"vllm" in _command(pid).lower()]

    def end(self) -> None:
        """Stops the server, with patience for its last requests; returns when no process of it is left."""
        if self.is_alive:
            kill(self.pid, signal.SIGTERM)
            self._wait(TERMINATE_SECONDS + KILL_SECONDS)
        for pid in self.group:
            kill(pid, signal.SIGKILL)
        self._wait(KILL_SECONDS)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.group and time.monotonic() < deadline:
            time.sleep(0.05)


def read_record(path: Path) -> ServerRecord | None:
    """The record of a server of which at least one process is left."""
    try:
        fields = json_object(path.read_bytes()) or {}
        record = ServerRecord(
            int(fields["pid"]),
            str(fields["boot"]),
            int(fields["started"]),
            list(fields["command"]),
            bool(fields["keep"]),
            Path(fields["log"]),
        )
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return record if record.is_alive or record.group else None


class Users:
    """A share in a server's users file: while any is held, the guardian leaves the server alone."""

    def __init__(self, record: Path) -> None:
        self.path = record.with_suffix(".users")
        self._file = self.path.open("a")

    def try_share(self) -> bool:
        """Takes a share; False while the guardian is just ending the server."""
        return self._lock(fcntl.LOCK_SH)

    def try_alone(self) -> bool:
        """Takes the file for itself; False, with the share it had, while somebody else has one."""
        if self._lock(fcntl.LOCK_EX):
            return True
        self._lock(fcntl.LOCK_SH)  # a failed change of a lock loses the old one
        return False

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
