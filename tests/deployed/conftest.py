"""A Prefect server of its own, set up and deployed to as docs/deploy.md says, and a real worker."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.support.prefect_server import TemporaryPrefectServer
from stand_in.ports import free_port
from tests.conftest import ROOT, ask_prefect, read_prefect
from tests.deployed.postgresql import postgresql

PREFECT = str(Path(sys.executable).with_name("prefect"))


# Prefect's polling intervals are 10 to 60 seconds by default.
IMPATIENT = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "1",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
}
# For what is another thing on PostgreSQL: locks, and what the server's own services write.
ON_BOTH_DATABASES = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@dataclass
class Deployed:
    """A server with its deployments, and the commands that users run."""

    api: str
    folder: Path
    environment: dict[str, str]
    worker: "subprocess.Popen[bytes] | None" = None  # the one for all tests that want any

    def prefect(self, *arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        """Runs a prefect command."""
        command = [PREFECT, "--no-prompt", *arguments]
        return subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=240, check=False
        )

    def start_worker(self, name: str, *more: str) -> "subprocess.Popen[bytes]":
        """A worker in a folder without the project: what it runs must be installed."""
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [PREFECT, "worker", "start", "--pool", "annotate", "--type", "process", "--name", name, *more],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def stop_worker(self) -> None:
        """Stops the one for all tests, for a test with workers of its own."""
        if self.worker is not None:
            self.worker.terminate()
            try:
                self.worker.wait(30)
            finally:
                self.worker.kill()
                self.worker = None

    def run(self, deployment: str, /, **parameters: Any) -> str:
        """Starts a run of a deployment; returns its id."""
        found = read_prefect(self.api, f"/deployments/name/{deployment}")
        made = ask_prefect(self.api, f"/deployments/{found['id']}/create_flow_run", parameters=parameters)
        return str(made["id"])

    def runs_of(self, output: Path) -> list[str]:
        """The runs that write this output, those of a schedule included that are far from their time, soonest first."""
        runs = ask_prefect(self.api, "/flow_runs/filter", sort="EXPECTED_START_TIME_ASC")
        return [run["id"] for run in runs if run["parameters"].get("output") == str(output)]

    def sub_runs_of(self, run: str) -> list[dict[str, Any]]:
        """The runs that a run has started, as the UI shows them below it."""
        runs: list[dict[str, Any]] = ask_prefect(
            self.api, "/flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [run]}}
        )
        return runs

    def pid_of(self, run: str) -> int:
        """The process of a run, as the worker has recorded it."""
        return int(read_prefect(self.api, f"/flow_runs/{run}")["infrastructure_pid"].rpartition(":")[2])

    def state_of(self, run: str) -> dict[str, Any]:
        """The flow run's state."""
        state: dict[str, Any] = read_prefect(self.api, f"/flow_runs/{run}")["state"]
        return state

    def wait_for(self, run: str, *names: str, seconds: float = 120) -> dict[str, Any]:
        """The flow run's state, once it has one of these names."""
        deadline = time.monotonic() + seconds
        while (state := self.state_of(run))["name"] not in names:
            assert time.monotonic() < deadline, state
            time.sleep(0.3)
        return state


@pytest.fixture(scope="session", params=["sqlite"])
def database(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The setting that gives a Prefect server its database; SQLite needs none."""
    if request.param == "sqlite":
        yield {}
        return
    with postgresql() as url:
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory, database: dict[str, str]) -> Iterator[Deployed]:
    """Everything deployed, as docs/deploy.md does it."""
    with deployed_in(tmp_path_factory.mktemp("deployed"), database) as made:
        yield made


@contextmanager
def deployed_in(folder: Path, settings: dict[str, str]) -> Iterator[Deployed]:
    """A Prefect server with these settings and files in a folder, and everything deployed to it."""
    port = free_port()
    own = IMPATIENT | {
        "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "XDG_STATE_HOME": str(folder / "state"), "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }  # fmt: skip
    server = TemporaryPrefectServer(own | settings, port)
    server.wait_until_ready()
    made = Deployed(server.api_url, folder, os.environ | own)
    subprocess.run([sys.executable, "-m", "deployments.setup"], cwd=ROOT, env=made.environment, check=True)
    ran = made.prefect("deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    yield made
    made.stop_worker()
    server.stop()


@pytest.fixture(autouse=True)
def no_other_prefect_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the server that other tests of this process share."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def worker(deployed: Deployed) -> None:
    """A worker that polls."""
    if deployed.worker is None:
        deployed.worker = deployed.start_worker("worker-1")
    assert deployed.worker.poll() is None, (deployed.folder / "worker-1.log").read_text()


@pytest.fixture
def no_worker(deployed: Deployed) -> None:
    """None but those that the test starts."""
    deployed.stop_worker()


@pytest.fixture
def parameters() -> Callable[..., dict[str, Any]]:
    """The run parameters of a job."""

    def of(job: Any, url: str, **more: Any) -> dict[str, Any]:
        paths = {"input": str(job.input), "image_root": str(job.images), "output": str(job.output)}
        return paths | {"server": {"endpoints": [f"{url}/v1"]}} | more

    return of


def descendants(pid: int) -> list[int]:
    """All descendants of this process."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        children = Path(f"/proc/{parent}/task").glob("*/children")
        for child in (int(word) for file in children for word in file.read_text().split()):
            found.append(child)
            todo.append(child)
    return found
