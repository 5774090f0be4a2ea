"""The process of a temporary Prefect server. It can start before it is known whether and where it is to serve."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

LAUNCHER = Path(__file__).with_name("server_launcher.py")


class ServerProcess:
    """Imports what a server needs, and waits to be told where to serve. Ends if it is never told.

    This module imports nothing of Prefect: that takes a second, which the process can use.
    """

    def __init__(self) -> None:
        """Starts it. Raises OSError if there is not even room for its log."""
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self._channel, its_end = socket.socketpair()
        with its_end:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-P", str(LAUNCHER)],
                stdin=its_end.fileno(),
                stdout=self.log,
                stderr=self.log,
                env=plain_environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the run; the server records how it ended
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it if it was not told to serve."""
        if self._channel.fileno() >= 0:
            self._channel.close()
            self.process.kill()
            self.process.wait()
            self.log.close()

    def serve(self, home: Path, port: int, environment: Mapping[str, str], turn: int) -> None:
        """Lets it serve once it has its `turn`, a descriptor on which it waits for an exclusive lock."""
        told = {"home": str(home), "port": str(port), "environment": dict(environment)}
        with self._channel, suppress(OSError):  # of a process that has ended: its log says why
            socket.send_fds(self._channel, [b"\0"], [turn])
            self._channel.sendall(json.dumps(told).encode())


def plain_environment() -> dict[str, str]:
    """The user's environment, without Prefect's settings and proxies."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and not name.lower().endswith("_proxy")
    }
