"""A real Prefect server for the session, a stand-in vLLM a test, and small inputs to annotate."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flows.support.prefect_server import TemporaryPrefectServer
from stand_in.ports import free_port
from stand_in.process import StandIn
from tests.support.command import FORKS

ROOT = Path(__file__).parent.parent
pytest_plugins = ["tests.support.s3"]

# The same examples every time, so that a test that fails does so again; `make test-fuzz` draws others, and fifty times
# as many. No deadline: machines stall now and then.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("fuzz", derandomize=False, max_examples=5000, deadline=None)
hypothesis.settings.register_profile("ci", derandomize=False, max_examples=200, deadline=None)
hypothesis.settings.load_profile("same")


def pytest_configure() -> None:
    """In the background of a script SIGINT is ignored, and under nohup SIGHUP, also by all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_unconfigure() -> None:
    """Ends what runs the commands of the tests."""
    FORKS.end()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes long first, so that no process of `-n` is left alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process of `-n` one test after the other; those of a Prefect server stay with it.

    To set one up takes half a minute of a core. So all tests on PostgreSQL share one, and those on SQLite two. One vLLM
    serves all that need none of their own.

    The mark xdist_group would do, but with pytest 9.2 xdist 3.8 does not see it.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            database = re.search(r"[\[-](sqlite|postgresql)[]-]", nodeid)
            if database is None:
                return file if file == "tests/test_vllm.py" else nodeid
            half = bool(re.search("deployments|operations", file))
            return f"sqlite {half}" if database[1] == "sqlite" else database[1]

    return Scheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server with a database of its own; flows of this process and of subprocesses report to it."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    home = tmp_path_factory.mktemp("prefect")
    os.environ["PREFECT_HOME"] = str(home)
    server = TemporaryPrefectServer(port=free_port())
    server.wait_until_ready()
    os.environ["PREFECT_API_URL"] = server.api_url
    with temporary_settings({PREFECT_API_URL: server.api_url, PREFECT_HOME: home}):
        yield server.api_url
    del os.environ["PREFECT_API_URL"]
    server.stop()


def ask_prefect(api: str, path: str, *items: Any, **body: Any) -> Any:
    """POSTs an object, or a list of items, to the Prefect API, as its UI does."""
    data = json.dumps(items or body).encode()
    return answer_of(urllib.request.Request(api + path, data=data, headers={"Content-Type": "application/json"}))


def read_prefect(api: str, path: str) -> Any:
    """GETs from the Prefect API."""
    return answer_of(urllib.request.Request(api + path))


def answer_of(request: urllib.request.Request) -> Any:
    """The answer of a Prefect server, which may be busy."""
    for _ in range(50):
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503:  # SQLite is busy, says the server; its clients try again
                raise AssertionError(f"{request.full_url}: HTTP {error.code}: {error.read().decode()}") from error
            error.close()
        time.sleep(0.2)
    raise RuntimeError("the Prefect server stays busy")


@pytest.fixture
def fuzzing() -> bool:
    """Whether this is `make test-fuzz`, which tries more, and other things each time."""
    return not hypothesis.settings().derandomize


@pytest.fixture
def rng(request: pytest.FixtureRequest, fuzzing: bool) -> random.Random:
    """Draws what a test leaves to chance: the same every time, but in `make test-fuzz`."""
    seed = request.config.getoption("--hypothesis-seed")
    if seed is None:
        seed = random.randrange(2**32) if fuzzing else 0
    print(f"--hypothesis-seed={seed}")
    return random.Random(int(seed))


@pytest.fixture(scope="session")
def lasting_stand_in() -> Iterator[StandIn]:
    """A stand-in vLLM with default settings, for all tests that take one."""
    with StandIn.started() as server:
        yield server


@pytest.fixture
def stand_in(lasting_stand_in: StandIn) -> StandIn:
    """A stand-in vLLM with default settings that was asked nothing yet; a test may also kill it."""
    lasting_stand_in.renew()
    return lasting_stand_in


@dataclass
class Job:
    """A folder with images and an input, and the command line that annotates it."""

    folder: Path
    names: list[str]

    @property
    def input(self) -> Path:
        return self.folder / "input.jsonl"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def output(self) -> Path:
        return self.folder / "labeled.jsonl"

    @property
    def failures(self) -> Path:
        return self.folder / "labeled.failures.jsonl"

    @property
    def work(self) -> Path:
        return self.folder / "labeled.work"

    def write_input(self, rows: list[dict[str, Any]]) -> None:
        """Replaces the input."""
        self.input.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def rows(self) -> list[dict[str, Any]]:
        """The input's rows, one an image, each with a caption of its own."""
        return [{"image_path": name, "caption": f"caption of {name}"} for name in self.names]

    def parameters(self, server: Any, **more: Any) -> Any:
        """The job as the library takes it."""
        from vllm_annotate.job import Job as Parameters

        return Parameters(input=self.input, image_root=self.images, output=self.output, server=server, **more)

    def arguments(self, server: str, *more: str) -> list[str]:
        """The command line's arguments."""
        paths = ["--input", self.input, "--image-root", self.images, "--output", self.output]
        return [*map(str, paths), "--api-base", f"{server}/v1", *more]

    def start(self, server: str, *more: str, **environment: str) -> "subprocess.Popen[str]":
        """The command, as a process of its own."""
        return self.start_with(self.arguments(server, *more), **environment)

    def start_with(self, arguments: list[str], **environment: str) -> "subprocess.Popen[str]":
        """The command with these arguments alone."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.annotate", *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, server: str, *more: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Runs the command to its end."""
        return self.run_with(self.arguments(server, *more), **environment)

    def run_with(self, arguments: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
        """Runs the command with these arguments alone to its end."""
        return FORKS.run("flows.annotate", arguments, os.environ | environment)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """Makes a job of small one-shape images, all drawn or so many `distinct` ones under more names."""

    def make(count: int, folder: Path | None = None, distinct: int | None = None) -> Job:
        return drawn_job(count, folder or tmp_path / "job", distinct)

    return make


def drawn_job(count: int, folder: Path, distinct: int | None = None) -> Job:
    """A job in a folder, as `make_job`."""
    from demo.scenes import draw_scene

    job = Job(folder, [f"{number:04d}.jpg" for number in range(count)])
    job.images.mkdir(parents=True, exist_ok=True)
    rng = random.Random(count)
    drawn, linked = job.names[:distinct], job.names[distinct:] if distinct else []
    for name in drawn:
        draw_scene(rng, 196, 168, 1).image.save(job.images / name, quality=90)
    for number, name in enumerate(linked):
        os.link(job.images / drawn[number % len(drawn)], job.images / name)
    job.write_input(job.rows())
    return job


@pytest.fixture
def nobody() -> str:
    """The URL of a port where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"
