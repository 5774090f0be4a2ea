"""Image files and image roots that cannot be read."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.conftest import ROOT, Job, lines_of

ERRORS = [
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EBADMSG, errno.EUCLEAN,
    errno.EINVAL, errno.ENOSPC,
]  # fmt: skip
READ_EACH = """
import os, sys
from pathlib import Path
from vllm_annotate.errors import AnnotateError
from vllm_annotate.images.files import read_image

for number in sys.argv[2:]:
    if os.fork() == 0:  # the shim reads its settings once in each process
        os.environ["FAULT_MODE"] = f"error:{number}"
        for name in ("broken.jpg", "whole.jpg"):
            try:
                print(name, read_image(Path(sys.argv[1]), name).decode(), flush=True)
            except AnnotateError as error:
                print(name, getattr(error, "kind", "stops the run"), error, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("call", ["open", "stat", "read"])
def test_an_io_error_of_a_file_is_that_images_failure(tmp_path: Path, shim: Path, call: str) -> None:
    for name in ("broken.jpg", "whole.jpg"):
        (tmp_path / name).write_bytes(b"read")
    faults = {"LD_PRELOAD": str(shim), "FAULT_PREFIX": f"{tmp_path}/broken.jpg", "FAULT_CALL": call}
    arguments = [str(tmp_path), *map(str, ERRORS)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ_EACH, *arguments],
        cwd=ROOT, env=os.environ | faults | {"FAULT_AT": "1-1000000"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = [
        line
        for number in ERRORS
        for line in (
            f"broken.jpg unreadable {os.strerror(number)}: 'broken.jpg' under {tmp_path}; check the disk or the "
            "network, and run again",
            "whole.jpg read",
        )
    ]
    assert done.stdout.splitlines() == expected, done.stderr


def test_an_image_that_a_disk_did_not_give_is_answered_by_the_next_run(
    make_job: Callable[..., Job], stand_in: StandIn, shim: Path
) -> None:
    job = make_job(6)
    faults = {
        "LD_PRELOAD": str(shim), "FAULT_PREFIX": f"{job.images}/0003.jpg", "FAULT_CALL": "read",
        "FAULT_AT": "1-1000000", "FAULT_MODE": f"error:{errno.EIO}",
    }  # fmt: skip
    first = job.run(stand_in.url, "--without-prefect", **faults)
    assert first.returncode == 1, first.stderr
    assert [row["image_path"] for row in lines_of(job.output)] == job.names[:3] + job.names[4:]
    (failed,) = lines_of(job.failures)
    assert failed["image_path"] == "0003.jpg"
    assert failed["failure"]["kind"] == "unreadable"
    assert failed["failure"]["message"].startswith("Input/output error: '0003.jpg' under ")
    assert job.run(stand_in.url, "--without-prefect").returncode == 0
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names
    assert not job.failures.exists()


def test_a_run_whose_image_root_is_unmounted_stops_and_blames_no_image(make_job: Callable[..., Job]) -> None:
    job = make_job(300, distinct=5)
    away = job.folder / "away"
    with StandIn.started("--canned", "--prefill-seconds", "0.05") as server:
        run = job.start(server.url, "--without-prefect", "--max-concurrency", "4", "--chunk-size", "50")
        deadline = time.monotonic() + 60
        while sum(server.asked().values()) < 60:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job.images.rename(away)
        job.images.mkdir()  # the mount point
        _, said = run.communicate(timeout=60)
        assert run.returncode != 0
        assert f"image root {job.images} is empty: check whether it is mounted, and run again" in said, said
        assert "Traceback" not in said
        refused = job.run(server.url, "--without-prefect")
        assert f"image root {job.images} is empty: check whether it is mounted" in refused.stderr
        job.images.rmdir()
        away.rename(job.images)
        assert job.run(server.url, "--without-prefect").returncode == 0
        assert sum(server.asked().values()) <= 300 + 4
    assert [row["image_path"] for row in lines_of(job.output)] == job.names
    assert not job.failures.exists()


@pytest.mark.usefixtures("prefect_api")
def test_the_flow_fails_with_the_image_root_in_its_message(make_job: Callable[..., Job]) -> None:
    job = make_job(300, distinct=5)
    with StandIn.started("--canned", "--prefill-seconds", "0.1") as server:
        run = job.start(server.url, "--max-concurrency", "4", "--chunk-size", "50")
        deadline = time.monotonic() + 120
        while sum(server.asked().values()) < 60:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job.images.rename(job.folder / "away")
        _, said = run.communicate(timeout=120)
        asked = sum(server.asked().values())
    assert run.returncode == 1, said
    assert f"image root {job.images} cannot be read (No such file or directory): check whether it is mounted" in said
    assert "Traceback" not in said
    assert asked < 300, "the others wait for the next run"
    assert not job.failures.exists()
