"""The command in this process: what it prints, and its exit code."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from vllm_annotate.cli.main import main


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `vllm-annotate` with these arguments."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run
