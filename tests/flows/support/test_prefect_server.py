"""The temporary Prefect server, in environments that were made for another."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from flows.support.prefect_server import TemporaryPrefectServer
from stand_in.ports import free_port
from stand_in.process import StandIn
from tests.conftest import ROOT, Job

MakeJob = Callable[..., Job]
HOSTILE = {
    "PREFECT_SERVER_API_AUTH_STRING": "admin:secret",
    "PREFECT_SERVER_API_BASE_PATH": "/prefect",
    "PREFECT_API_KEY": "pnu_secret",
    "PREFECT_CLIENT_CUSTOM_HEADERS": '{"Authorization": "Bearer secret"}',
    "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK": "s3-bucket/nowhere",
    "PREFECT_TASKS_DEFAULT_RETRIES": "3",
}


def command(job: Job, server: StandIn, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, without the session's Prefect server."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows.annotate", *job.arguments(server.url)],
        cwd=job.folder, env=plain | {"PYTHONPATH": str(ROOT)} | environment,
        text=True, capture_output=True, timeout=150, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_settings_of_another_server_and_proxies_do_not_reach_it(
    make_job: MakeJob, stand_in: StandIn, nobody: str, tmp_path: Path
) -> None:
    job, home = make_job(3), tmp_path / "home"
    home.mkdir()
    of_profile = "\n".join(f"{name} = '{value}'" for name, value in HOSTILE.items())
    (home / "profiles.toml").write_text(f"active = 'work'\n[profiles.work]\n{of_profile}\n")
    (job.folder / "prefect.toml").write_text("[server.api]\nauth_string = 'admin:secret'\n[api]\nkey = 'pnu_secret'\n")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), nobody)
    done = command(job, stand_in, PREFECT_HOME=str(home), **proxies, **HOSTILE)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        assert database.execute("select state_name from flow_run").fetchall() == [("Completed",)]


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("PREFECT_API_REQUEST_TIMEOUT", "s3cret", "Prefect refuses its APISettings: request_timeout: "),
        ("ALL_PROXY", "socks5://me:s3cret@127.0.0.1:9", "cannot use the proxy of ALL_PROXY: "),
        ("https_proxy", "gopher://s3cret", "cannot use the proxy of https_proxy: "),
    ],
)
def test_an_environment_in_which_prefect_cannot_work_is_refused_at_once(
    make_job: MakeJob, stand_in: StandIn, tmp_path: Path, setting: str, value: str, complaint: str
) -> None:
    done = command(make_job(1), stand_in, PREFECT_HOME=str(tmp_path / "home"), **{setting: value})
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert complaint in done.stderr
    assert "--without-prefect" in done.stderr
    assert "s3cret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_a_database_of_a_newer_prefect_stays_as_it_is_and_a_temporary_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('ffffffffffff')")
        database.commit()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    server = TemporaryPrefectServer()
    try:
        server.wait_until_ready()
        assert f"cannot use its home {tmp_path}: its database was made by a newer Prefect" in server.home.note
        assert (server.home.path / "prefect.db").exists()
    finally:
        server.given_up.set()
        server.stop()
    assert not server.home.path.exists()
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        assert database.execute("select version_num from alembic_version").fetchall() == [("ffffffffffff",)]


@pytest.mark.long
def test_two_servers_that_start_at_once_make_one_database_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "fresh"))
    servers = [TemporaryPrefectServer(), TemporaryPrefectServer()]
    try:
        # Each lets the other one start when it is ready, whichever was first.
        with ThreadPoolExecutor() as pool:
            list(pool.map(TemporaryPrefectServer.wait_until_ready, servers))
        for server in servers:
            assert server.home.path == tmp_path / "fresh"
            assert server.home.note == ""
    finally:
        for server in servers:
            server.given_up.set()
            server.stop()


def test_a_server_that_cannot_start_says_why_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_bytes(b"no database" * 1000)
    server = TemporaryPrefectServer({"PREFECT_HOME": str(tmp_path)}, free_port())
    with pytest.raises(RuntimeError) as refused:
        server.wait_until_ready()
    server.stop()
    server.stop()
    assert str(refused.value) == ("the temporary Prefect server did not start: its database is damaged")
