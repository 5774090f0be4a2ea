"""Hands out ports for test servers, which several pytest processes start at once."""

import contextlib
import itertools
import socket
from functools import cache

# Below the kernel's ephemeral ports (from 32768), so that it never hands out one of these.
FIRST, LAST, BLOCK = 10_000, 32_000, 200


def free_port() -> int:
    """A port on loopback for this caller alone, as is the next one, for a second replica."""
    _, ports = _block()
    for port in itertools.islice(ports, BLOCK):
        if _is_free(port) and _is_free(port + 1):
            return port
    raise RuntimeError(f"all {BLOCK} ports of this process are taken")


@cache
def _block() -> "tuple[socket.socket, itertools.cycle[int]]":
    """The ports of this process. The socket, on the first, reserves them against other test processes."""
    for first in range(FIRST, LAST, BLOCK):
        with contextlib.suppress(OSError):
            return _bound(first), itertools.cycle(range(first + 2, first + BLOCK, 2))
    raise RuntimeError(f"no {BLOCK} ports in a row are free between {FIRST} and {LAST}")


def _bound(port: int) -> socket.socket:
    """A socket bound to a port on loopback. Raises OSError if the port is in use."""
    bound = socket.socket()
    try:
        bound.bind(("127.0.0.1", port))
    except OSError:
        bound.close()
        raise
    return bound


def _is_free(port: int) -> bool:
    try:
        _bound(port).close()
    except OSError:
        return False
    return True
