"""SIGKILL at random moments of one job, resumed each time: nothing lost, nothing twice, no wasted requests."""

import random
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, lines_of

IMAGES = 240
IN_FLIGHT = 8
OPTIONS = ("--chunk-size", "25", "--max-concurrency", str(IN_FLIGHT))


@pytest.mark.fuzz
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_api")
def test_kills_lose_nothing_and_repeat_nothing(make_job: Callable[..., Job], rng: random.Random, fuzzing: bool) -> None:
    kills = 20 if fuzzing else 2  # each call that changes a file is killed in tests/faults
    undisturbed = make_job(IMAGES)
    with StandIn.started("--prefill-seconds", "0.1") as server:
        server.set_faults({"kind": "400", "count": None, "match": "00[0-9]7"})
        (undisturbed.images / undisturbed.names[3]).write_bytes(b"broken")
        assert undisturbed.run(server.url, *OPTIONS).returncode == 1
        server.forget()
        job = make_job(IMAGES, undisturbed.folder.with_name("killed"))
        (job.images / job.names[3]).write_bytes(b"broken")
        for number in range(kills):
            kill_at_a_random_moment(rng, job.start(server.url, *OPTIONS), server, answering=number % 2 == 0)
        last = job.run(server.url, *OPTIONS)
        assert last.returncode == 1, last.stderr
        asked = server.asked()
    assert job.output.read_bytes() == undisturbed.output.read_bytes()
    assert job.failures.read_bytes() == undisturbed.failures.read_bytes()
    assert len(lines_of(job.output)) + len(lines_of(job.failures)) == IMAGES
    repeated = sum(count - 1 for count in asked.values())
    print(f"{kills} kills: {repeated} requests repeated, {kills * IN_FLIGHT} allowed")
    assert len(asked) == IMAGES - 1
    assert repeated <= kills * IN_FLIGHT
    assert not any(job.work.glob("parts/*"))


def kill_at_a_random_moment(
    rng: random.Random, process: "subprocess.Popen[str]", server: StandIn, *, answering: bool
) -> None:
    """While requests are in flight, or at any time, start-up included."""
    if answering:
        enough = sum(server.asked().values()) + rng.randint(1, 20)
        while sum(server.asked().values()) < enough and process.poll() is None:
            time.sleep(rng.uniform(0, 0.05))
    else:
        time.sleep(rng.uniform(0, 4))
    process.send_signal(signal.SIGKILL)
    process.communicate()
