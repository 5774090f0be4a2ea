"""Records the servers that runs have started on this machine, and the runs that use them.

One file per port in the user's state folder, so that later runs find a server left by a killed run.
"""

import fcntl
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, ValidationError

from vllm_annotate.serving.guardian import TERMINATE_SECONDS, boot_id, kill, process_groups, start_ticks
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.state_folder import state_folder

KILL_SECONDS = 10
LONGEST_BYTES = 1_000_000


def record_path(port: int) -> Path:
    """The path of the record for a port; creates its folder. Home folders can be shared between machines."""
    folder = state_folder() / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{socket.gethostname()}-{port}.json"


@dataclass(frozen=True)
class ServerRecord:
    """A server that a run has started; `pid` is its guardian, which leads its process group."""

    pid: Annotated[int, Field(gt=1, lt=2**31)]
    boot: str  # boot id of the machine
    started: Annotated[int, Field(ge=0)]  # clock ticks since boot; tells a process from a later one with the same pid
    command: list[str]
    keep: bool
    log: Path

    @property
    def is_alive(self) -> bool:
        """Whether the guardian, and so the server, runs."""
        return self.boot == boot_id() and start_ticks(self.pid) == self.started

    @property
    def group(self) -> list[int]:
        """The processes of the server. They survive a killed guardian."""
        if self.is_alive:
            return [pid for pid, group in process_groups() if group == self.pid]
        if self.boot != boot_id() or start_ticks(self.pid) is not None:
            return []  # the pid is another process's by now
        # The group id may be reused too: count only processes of vLLM.
        return [pid for pid, group in process_groups() if group == self.pid and b"vllm" in _command(pid).lower()]

    def end(self) -> None:
        """Stops the server after its last requests; returns once all its processes are gone."""
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


RECORD = TypeAdapter(ServerRecord)


def read_record(path: Path, say: Callable[[str], None] = lambda _: None) -> ServerRecord | None:
    """The record of a server, if at least one of its processes exists; `say` gets the reason if it is ignored."""
    try:
        record, why = _record_in(path)
    except OSError as error:
        record, why = None, f"it cannot be read ({error.strerror})"
    if why:
        say(f"ignoring {path}, the record of a server: {why}")
    return record if record is not None and (record.is_alive or record.group) else None


def _record_in(path: Path) -> tuple[ServerRecord | None, str]:
    """What a file says, or why it says nothing; neither if there is no such file."""
    if not path.exists():
        return None, ""
    if not path.is_file():  # a pipe would never end
        return None, "it is not a file"
    with path.open("rb") as file:
        content = json_object(file.read(LONGEST_BYTES))
    try:
        record = RECORD.validate_python(content)
    except ValidationError as error:
        return None, f"its content is not valid ({error.errors()[0]['msg']})"
    return record, "" if record.boot == boot_id() else "it was written before this machine started, or on another one"


class Users:
    """A share in a server's users file: while a run holds one, the guardian does not stop the server."""

    def __init__(self, record: Path) -> None:
        self.path = record.with_suffix(".users")
        self._file = self.path.open("a")

    def try_share(self) -> bool:
        """Takes a share; False while the guardian is stopping the server."""
        return self._lock(fcntl.LOCK_SH)

    def try_alone(self) -> bool:
        """Takes the file exclusively; returns False and holds only its share if another run has one."""
        if self._lock(fcntl.LOCK_EX):
            return True
        self._lock(fcntl.LOCK_SH)  # a failed upgrade drops the old lock
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
