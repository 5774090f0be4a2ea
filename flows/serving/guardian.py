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


def _write_record(path: Path, record: "dict[str, object]") -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # its start, since boot
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps({"pid": os.getpid(), "boot": boot, "started": int(ticks), **record}))
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
    """VLLM's engine and workers outlive a killed parent, for minutes and with the GPU's memory."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, group = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[2])
            if group == os.getpid() and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            continue  # it has ended by itself


if __name__ == "__main__":
    sys.exit(main())
