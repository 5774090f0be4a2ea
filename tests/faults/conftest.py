"""A process that does the steps of runs, and can be told at which system call to die."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that counts system calls and makes one fail."""
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@dataclass
class Outcome:
    """How a step ended, and what it said."""

    code: int
    said: str


class Steps:
    """Steps of runs, in processes of their own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def do(self, step: str, /, *, faults: dict[str, str] | None = None, **parameters: Any) -> Outcome:
        """Does a step; `faults` are settings of the shim."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"step": step, "parameters": parameters, "faults": faults or {}}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


@pytest.fixture(scope="session")
def steps(shim: Path) -> Iterator[Steps]:
    """Does steps for as long as the tests last."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.faults.steps"],
        cwd=ROOT, env=os.environ | {"LD_PRELOAD": str(shim)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        yield Steps(process)
