"""A disk that takes no more: the run stops asking at once, says so, and goes on when there is room."""

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, lines_of

pytestmark = pytest.mark.usefixtures("prefect_api")
ADVICE = {errno.ENOSPC: "is full: make room", errno.EDQUOT: "quota", errno.EROFS: "mount it for writing"}


def full(job: Job, shim: Path, number: int, below: str, first: int) -> dict[str, str]:
    prefix = f"{job.folder}/{below}"
    return {
        "LD_PRELOAD": str(shim), "FAULT_PREFIX": prefix, "FAULT_AT": f"{first}-1000000",
        "FAULT_MODE": f"error:{number}",
    }  # fmt: skip


@pytest.mark.parametrize("number", ADVICE)
def test_no_chunk_asks_on_when_answers_cannot_be_written(
    make_job: Callable[..., Job], shim: Path, tmp_path: Path, number: int
) -> None:
    job = make_job(400, distinct=5)
    options = ("--chunk-size", "20", "--max-concurrency", "8")
    with StandIn.started("--canned", "--prefill-seconds", "0.02") as server:
        stopped = job.run(server.url, *options, **full(job, shim, number, "labeled.work/parts/", 40))
        assert stopped.returncode == 1, stopped.stderr
        assert "Traceback" not in stopped.stderr + stopped.stdout
        assert ADVICE[number] in stopped.stderr
        assert "run again; all answers are saved" in stopped.stderr
        asked = sum(server.asked().values())
        assert asked <= 40 + 2 * 8, "what was in flight, and what was answered before"
        answered = [row["image_path"] for row in lines_of(job.output)] if job.output.exists() else []
        assert answered == job.names[: len(answered)], "of chunks that were finished"
        again = job.run(server.url, *options)
        assert again.returncode == 0, again.stderr
        assert sum(server.asked().values()) <= 400 + 2 * 8
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


@pytest.mark.parametrize("below", ["labeled.work/plan", "labeled.work/.plan", "labeled.jsonl", ".labeled.failures"])
def test_a_full_disk_is_never_blamed_on_the_input(
    make_job: Callable[..., Job], stand_in: StandIn, shim: Path, below: str
) -> None:
    job = make_job(12)
    (job.images / "0003.jpg").unlink()
    stopped = job.run(stand_in.url, **full(job, shim, errno.ENOSPC, below, 1))
    assert stopped.returncode == 1, stopped.stderr
    assert "Traceback" not in stopped.stderr + stopped.stdout
    assert re.search(rf"the disk of {job.folder}/\S+ is full: make room and run again", stopped.stderr), stopped.stderr
    assert "cannot be read" not in stopped.stderr
    again = job.run(stand_in.url)
    assert again.returncode == 1
    assert "12 images: 11 answered" in again.stderr
    assert max(stand_in.asked().values()) == 1
