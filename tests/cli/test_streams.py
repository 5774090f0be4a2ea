"""Standard streams that are closed, full, or that nobody reads: the run goes on, and its exit code stays."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.conftest import ROOT, Job, lines_of

PROGRAM = "from vllm_annotate.cli.start import start; start()"


def shell(command: list[str], redirected: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command in a shell that redirects its streams; its exit code is the command's."""
    words = shlex.join([sys.executable, "-c", PROGRAM, *command])
    line = f"set -o pipefail; {words} {redirected}"
    return subprocess.run(["bash", "-c", line], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "redirected",
    ["2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full", "2>&1 | head -1", "2> >(exit)", "2>&1 | true"],
)
def test_a_run_whose_messages_nobody_can_read_ends_like_any_other(
    make_job: Callable[..., Job], stand_in: StandIn, redirected: str
) -> None:
    job = make_job(3)
    (job.images / job.names[2]).unlink()
    done = shell(["annotate", "--without-prefect", *job.arguments(stand_in.url)], redirected)
    assert done.returncode == 1, done.stderr  # an image failed
    assert "Traceback" not in done.stdout + done.stderr
    assert [row["image_path"] for row in lines_of(job.output)] == job.names[:2]
    assert [row["image_path"] for row in lines_of(job.failures)] == job.names[2:]
    assert (job.folder / "labeled.report.html").is_file()


def test_a_file_of_the_run_never_gets_the_number_of_a_closed_stream(
    make_job: Callable[..., Job], stand_in: StandIn
) -> None:
    job = make_job(3)
    job.write_input([*job.rows(), {"image_path": "none.jpg", "caption": ""}])
    shell(["annotate", "--without-prefect", *job.arguments(stand_in.url)], "<&- >&- 2>&-")
    written = [path for path in job.folder.rglob("*") if path.is_file()]
    assert not [path for path in written if b"images processed" in path.read_bytes()]


@pytest.mark.parametrize("arguments", [["--help"], ["annotate", "--help"], ["--version"], ["config"]])
def test_output_that_nobody_reads_is_no_error(arguments: list[str]) -> None:
    done = shell(arguments, "| true")
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    done = shell(["config", "--input", str(tmp_path)], ">/dev/full")
    assert done.returncode == 2, done
    assert done.stderr == "error: standard output cannot be written: No space left on device; redirect it\n"
