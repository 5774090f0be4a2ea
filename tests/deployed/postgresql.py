"""A PostgreSQL on loopback for the tests."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stand_in.ports import free_port


@contextmanager
def postgresql() -> Iterator[str]:
    """Its URL for Prefect's servers. Skips if it is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = programs[-1] if programs else Path(shutil.which("initdb") or "initdb")
    if not found.exists():
        pytest.skip("needs PostgreSQL (apt-get install postgresql)")
    # Not in pytest's folder: PostgreSQL does not run as root, and another user cannot enter that.
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    port = free_port()
    initdb: list[str | Path] = [
        found,
        "--pgdata",
        folder / "data",
        "--username=prefect",
        "--auth=trust",
        "--no-sync",
        "--encoding=UTF8",
    ]
    subprocess.run(initdb, user=user, check=True, capture_output=True, cwd=folder, timeout=120)
    options = [f"--port={port}", "--listen_addresses=127.0.0.1", "--unix_socket_directories=", "--fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [found.with_name("postgres"), "-D", folder / "data", *options],
            user=user,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        while subprocess.run([found.with_name("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)
