"""Finds the processes and users behind a port of this machine, as far as this user can see them."""

import os
import pwd
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

LISTENING = "0A"
EVERY_ADDRESS = ("0" * 8, "0" * 32)
IDENTITY = ["0", "0", "4294967295"]  # the map of user ids outside of user namespaces


@dataclass(frozen=True)
class Listener:
    """A listening socket; the address as the kernel's tables write it."""

    address: str
    uid: int
    inode: str


def users_behind(url: str) -> set[int]:
    """User ids of those who listen at a URL of this machine; empty if they cannot be seen, as from a container."""
    parts = urlsplit(url)
    there = list(_listeners(parts.port or 80))
    wanted = _addresses(parts.hostname or "")
    # What listens at one address goes before what listens at all.
    found = [one for one in there if one.address in wanted] or [one for one in there if one.address in EVERY_ADDRESS]
    return {one.uid for one in found if one.uid != _nobody_in_particular()}


def stranger_behind(url: str) -> str:
    """Name of another user who listens at a URL; "" if it is this one, or cannot be seen."""
    others = users_behind(url) - {os.geteuid()}
    return _user_name(min(others)) if others else ""


def is_a_strangers(url: str, user: str) -> str:
    """The message for a port of another user, who would get the API key and the images."""
    return (
        f"{url} is a server of user {user}, who would get the images and the API key: set another port, or, if you "
        "trust them, name the URL in endpoints and leave out start"
    )


def processes_behind(port: int) -> set[int]:
    """The processes that listen on a TCP port, and their descendants; empty if none are visible."""
    sockets = {f"socket:[{one.inode}]" for one in _listeners(port)}
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


def _listeners(port: int) -> Iterator[Listener]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, its_port = fields[1].rpartition(":")
                if fields[3] == LISTENING and int(its_port, 16) == port:
                    yield Listener(address, int(fields[7]), fields[9])


def _addresses(host: str) -> set[str]:
    """The addresses of a host as the kernel writes them: words of four bytes, in the machine's order."""
    found = set()
    with suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
            mapped = bytes(10) + b"\xff\xff" + packed if family == socket.AF_INET else packed
            found |= {_hexadecimal(packed), _hexadecimal(mapped)}
    return found


def _hexadecimal(packed: bytes) -> str:
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _nobody_in_particular() -> int | None:
    """The user id that stands for all users outside of this process's user namespace; None if it is in none."""
    with suppress(OSError, ValueError):
        if Path("/proc/self/uid_map").read_text().split() != IDENTITY:
            return int(Path("/proc/sys/kernel/overflowuid").read_text())
    return None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


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
