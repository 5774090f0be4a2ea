"""The command in a fork, as most tests run it, against the command in an interpreter of its own."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stand_in.process import StandIn
from tests.conftest import Job

REJECTED = {"kind": "400", "count": None, "match": "0001"}


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("code", "faults", "options"), [(0, [], []), (1, [REJECTED], []), (2, [], ["--model-name", "qwen"])]
)
def test_a_fork_says_and_returns_what_an_interpreter_of_its_own_does(
    make_job: Callable[..., Job],
    stand_in: StandIn,
    tmp_path: Path,
    code: int,
    faults: list[dict[str, Any]],
    options: list[str],
) -> None:
    stand_in.set_faults(*faults)
    job, own_job = make_job(3, tmp_path / "fork"), make_job(3, tmp_path / "own")
    fork = job.run(stand_in.url, *options)
    own = own_job.start(stand_in.url, *options)
    out, err = own.communicate(timeout=120)
    assert fork.returncode == own.returncode == code, err
    assert fork.stdout == out
    assert conclusions(fork.stderr, job) == conclusions(err, own_job) != []
    assert job.output.exists() == own_job.output.exists() == (code < 2)


def test_the_environment_of_a_fork_is_its_own(make_job: Callable[..., Job], nobody: str) -> None:
    job = make_job(1)
    refused = job.run(nobody, PREFECT_API_URL=f"{nobody}/api")
    assert refused.returncode == 2
    assert f"no Prefect server at PREFECT_API_URL {nobody}/api" in refused.stderr


def conclusions(said: str, job: Job) -> list[str]:
    """What a command says at its end, but for where its files are."""
    lines = said.replace(str(job.folder), "FOLDER").splitlines()
    return [line for line in lines if re.match(r"error: |files: |\d+ images: ", line)]
