"""The parent of one vLLM server: ends it when no run uses it any more, whatever became of the runs.

Runs hold a shared lock on the users file for as long as they use the server; the kernel lets go of it however they
end. The guardian leads the server's process group, so that everything the server starts can be found and ended. It is
run as a script and imports the standard library alone.

    python guardian.py RECORD_FILE USERS_FILE LOG_FILE LINGER_SECONDS|keep COMMAND…
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TERMINATE_SECONDS = 40  # vLLM finishes the requests in flight first


def main() -> int:
    """Returns the server's exit code."""
    record, users, log, linger, *command = sys.argv[1:]
    told = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    _write_record(Path(record), {"command": command, "keep": linger == "keep", "log": log})
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_when_told, args=[server, told], daemon=True).start()
    if linger != "keep":
        threading.Thread(target=_tell_when_unused, args=[told, Path(users), float(linger)], daemon=True).start()
    code = server.wait()
    _end_group()
    return code


def boot_id() -> str:
    """Tells this boot of the machine from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> "int | None":
    """When a process started, in clock ticks since boot; None when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def process_groups() -> "Iterator[tuple[int, int]]":
    """Process and group, of all that run."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended by itself
        if fields[0] not in "ZX":
            yield int(stat.parent.name), int(fields[2])


def kill(pid: int, number: signal.Signals) -> None:
    """Sends a signal, if the process is still there to take it."""
    with suppress(OSError):
        os.kill(pid, number)


def _write_record(path: Path, record: "dict[str, object]") -> None:
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    own = {"pid": os.getpid(), "boot": boot_id(), "started": start_ticks(os.getpid())}
    fresh.write_text(json.dumps({**own, **record}))
    fresh.replace(path)


def _tell_when_unused(told: threading.Event, users: Path, linger_seconds: float) -> None:
    with users.open("a") as file:
        while True:
            fcntl.flock(file, fcntl.LOCK_EX)  # waits until no run holds its share
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(linger_seconds)  # a run that was killed may be started again
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another run has come
            told.set()
            threading.Event().wait()  # keeps the lock until the end: a run that comes now waits for it


def _end_when_told(server: "subprocess.Popen[bytes]", told: threading.Event) -> None:
    told.wait()
    server.terminate()
    deadline = time.monotonic() + TERMINATE_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    _end_group()


def _end_group() -> None:
    """Ends what outlives a killed vLLM for minutes, and holds the GPU's memory: its engine and workers."""
    for pid, group in process_groups():
        if group == os.getpid() != pid:
            kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
