"""The command in processes that are forked from one that has imported it.

An interpreter that imports Prefect, polars and the rest works for more than two seconds before it does anything, and
the tests run the command more than a hundred times. What a run says and how it ends is the same; how it starts, and
what becomes of it when a signal comes meanwhile, is tested on interpreters of their own (Job.start).
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent.parent
READ_AT_START = ("PREFECT_", "DO_NOT_TRACK", "LD_", "PYTHON", "POLARS_")  # or at import: a fork would not notice them
MOST = 3  # processes that wait, of 150 MiB each


class Forks:
    """Processes that wait for commands, and run each in a fork of themselves; one for each settings of the start."""

    def __init__(self) -> None:
        self._processes: dict[frozenset[tuple[str, str]], subprocess.Popen[str]] = {}

    def run(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `python -m module arguments` to its end."""
        settings = frozenset((name, value) for name, value in environment.items() if name.startswith(READ_AT_START))
        # In use it is nobody else's: a thread that comes meanwhile starts another.
        process = self._processes.pop(settings, None) or self._started(environment)
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"module": module, "arguments": list(arguments), "environment": dict(environment)}
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            code, out, err = json.loads(process.stdout.readline())
        except BaseException:  # the test ran out of time
            self._end(process)
            raise
        if len(self._processes) >= MOST:
            self._end(self._processes.pop(next(iter(self._processes))))
        self._processes[settings] = process
        return subprocess.CompletedProcess([module, *arguments], code, out, err)

    def end(self) -> None:
        """Ends them all."""
        while self._processes:
            self._end(self._processes.popitem()[1])

    def _started(self, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
        without_faults = {name: value for name, value in environment.items() if not name.startswith("FAULT_")}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.command"], cwd=ROOT, env=without_faults, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def _end(self, process: "subprocess.Popen[str]") -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and with it a command that still runs
        process.communicate()


FORKS = Forks()


def main() -> None:
    """Serves requests, one a line, until there are no more."""
    for name in ("prefect.engine", "flows.annotate", "vllm_annotate.cli.annotate", "vllm_annotate.cli.with_prefect"):
        importlib.import_module(name)
    # It would say of each module that it was imported before it is run, which is the point.
    warnings.filterwarnings("ignore", message=".* found in sys.modules", category=RuntimeWarning)
    assert threading.active_count() == 1, "a process that has forked has one thread, and would wait for the others"
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    while line := requests.readline():
        with Path(os.devnull).open("rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            if (pid := os.fork()) == 0:
                for number, file in enumerate((nothing, out, err)):
                    os.dup2(file.fileno(), number)
                break
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(json.dumps([code, said(out), said(err)]), file=answers, flush=True)
    requests.close()
    answers.close()
    if line:
        become(**json.loads(line))


def said(file: IO[bytes]) -> str:
    """What was written to it."""
    file.seek(0)
    return file.read().decode()


def become(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a module as `python -m` does; the process ends as one of its own would, atexit and all."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
