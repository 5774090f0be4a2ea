"""Run as a script: becomes `prefect server start`, once it knows where.

What a server imports takes longer than all else of its start. Half of that are packages that do not depend on Prefect's
settings: they are imported while the run still finds these out.
"""

import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from contextlib import suppress

# Not Prefect, which reads its settings when it is imported.
WITHOUT_SETTINGS = (
    "httpx", "pydantic_settings", "jsonschema", "cyclopts", "griffe", "fastapi", "sqlalchemy.ext.asyncio",
    "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite", "alembic.command", "docket", "jinja2", "asyncpg",
    "cryptography.fernet", "uvicorn", "websockets.asyncio.client", "prometheus_client",
)  # fmt: skip
GARBAGE_EVERY = 50_000  # new objects, instead of 700: a seventh of the start was spent on looking for garbage


def main() -> None:
    """Imports, waits, takes its turn and serves. Ends with its parent, even if that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    gc.set_threshold(GARBAGE_EVERY, 10, 10)
    for name in WITHOUT_SETTINGS:
        with suppress(ImportError):  # of another version of Prefect
            importlib.import_module(name)
    with socket.socket(fileno=sys.stdin.fileno()) as channel:
        _, descriptors, *_ = socket.recv_fds(channel, 1, 1)
        if not descriptors:  # the run needs no server, or is gone
            return
        told = json.loads(channel.makefile("rb").read())
    os.open(os.devnull, os.O_RDONLY)  # standard input, in the place of the channel
    os.environ.update(told["environment"])
    os.chdir(told["home"])  # settings of Prefect's may also be in files of a working directory
    # Two servers must not create or migrate one database at once.
    fcntl.flock(descriptors[0], fcntl.LOCK_EX)
    os.pwrite(descriptors[0], b"%-10d" % os.getpid(), 0)
    sys.argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", told["port"]]
    runpy.run_module("prefect", run_name="__main__")


if __name__ == "__main__":
    main()
