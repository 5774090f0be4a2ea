"""Finds the processes behind a port of this machine, as far as this user can see them."""

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

LISTENING = "0A"


def processes_behind(port: int) -> set[int]:
    """The processes that listen on a TCP port, and their descendants; empty if none are visible."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    found = {pid for pid in _all_processes() if sockets and _holds(pid, sockets)}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid in _all_processes():
        if (parent := _parent(pid)) is not None:
            children[parent].append(pid)
    todo = list(found)
    while todo:
        for child in children[todo.pop()]:
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - avoids a thousand Path objects


def _holds(pid: int, sockets: set[str]) -> bool:
    with suppress(OSError):  # it exited, or is another user's
        for descriptor in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") in sockets:  # noqa: PTH115 - the target is not a path
                    return True
    return False


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None
