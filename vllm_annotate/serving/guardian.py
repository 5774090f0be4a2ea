"""The parent process of one vLLM server: stops it once no run uses it, even if the runs were killed.

A run holds a shared lock on the users file while it uses the server; the kernel releases it however the run ends. The
guardian leads the server's process group, so that everything the server starts can be found and stopped. It runs as a
script and imports the standard library only.

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
    """Runs the server and returns its exit code."""
    record, users, log, linger, *command = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    _write_record(Path(record), {"command": command, "keep": linger == "keep", "log": log})
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_server, args=[server, stop], daemon=True).start()
    if linger != "keep":
        threading.Thread(target=_wait_for_users, args=[stop, Path(users), float(linger)], daemon=True).start()
    code = server.wait()
    _end_group()
    return code


def boot_id() -> str:
    """Identifies this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> "int | None":
    """When a process started, in clock ticks since boot; None if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def process_groups() -> "Iterator[tuple[int, int]]":
    """Process and group ids of all running processes."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it exited meanwhile
        if fields[0] not in "ZX":
            yield int(stat.parent.name), int(fields[2])


def kill(pid: int, number: signal.Signals) -> None:
    """Sends a signal if the process still exists."""
    with suppress(OSError):
        os.kill(pid, number)


def _write_record(path: Path, record: "dict[str, object]") -> None:
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    own = {"pid": os.getpid(), "boot": boot_id(), "started": start_ticks(os.getpid())}
    fresh.write_text(json.dumps({**own, **record}))
    fresh.replace(path)


def _wait_for_users(stop: threading.Event, users: Path, linger_seconds: float) -> None:
    with users.open("a") as file:
        while True:
            fcntl.flock(file, fcntl.LOCK_EX)  # waits until no run holds a share
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(linger_seconds)  # a killed run may be restarted
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another run uses it
            stop.set()
            threading.Event().wait()  # holds the lock until this process exits: a new run waits for that


def _stop_server(server: "subprocess.Popen[bytes]", stop: threading.Event) -> None:
    stop.wait()
    server.terminate()
    deadline = time.monotonic() + TERMINATE_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    _end_group()


def _end_group() -> None:
    """Kills vLLM's engine and workers, which can outlive it for minutes and hold GPU memory."""
    for pid, group in process_groups():
        if group == os.getpid() != pid:
            kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
