"""What others do to the files of a run while its disk is slow, and SIGTERM in each of its phases."""

import json
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.faults.conftest import Outcome, Steps

MakeJob = Callable[..., Job]
PAUSE = "slow:600"


class Paused:
    """A step that stands still before one of its system calls, in a folder of its own."""

    def __init__(self, steps: Steps, folder: Path) -> None:
        self.steps = steps
        self.folder = folder
        self.log = folder / "calls"
        self.output = folder / "labeled.jsonl"
        self.write_input("input.jsonl", [f"{number}.jpg" for number in range(7)])

    def write_input(self, name: str, paths: list[str]) -> Path:
        rows = [{"image_path": path, "caption": f"caption of {path}"} for path in paths]
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self.folder / name

    def begin(self, call: str, threads: ThreadPoolExecutor) -> "Future[Outcome]":
        """Begins to annotate; returns when the call that matches is waited for."""
        prefix = f"{self.folder}/"
        probe = self.folder.with_name("probe")
        probe.mkdir()
        for path in self.folder.iterdir():
            (probe / path.name).write_bytes(path.read_bytes())
        faults = {"FAULT_PREFIX": f"{probe}/", "FAULT_LOG": str(self.log)}
        assert self.steps.do("annotate", folder=str(probe), faults=faults).code == 0
        numbers = [line.split()[0] for line in self.log.read_text().splitlines() if re.search(call, line)]
        self.log.unlink()
        faults = {"FAULT_PREFIX": prefix, "FAULT_LOG": str(self.log), "FAULT_AT": numbers[0], "FAULT_MODE": PAUSE}
        ending = threads.submit(self.steps.do, "annotate", folder=str(self.folder), faults=faults)
        while not (self.log.exists() and re.search(call, self.log.read_text())):
            time.sleep(0.01)
            assert not ending.done()
        return ending

    def captions(self) -> dict[str, str]:
        """What the output says each image was asked with; each once."""
        rows = lines_of(self.output)
        assert max(Counter(row["image_path"] for row in rows).values()) == 1
        return {row["image_path"]: str(row.get("vlm_output") or row.get("own")) for row in rows}


@pytest.fixture
def paused(steps: Steps, tmp_path: Path) -> Paused:
    folder = tmp_path / "job"
    folder.mkdir()
    return Paused(steps, folder)


@pytest.fixture
def threads() -> "ThreadPoolExecutor":
    return ThreadPoolExecutor(1)


def test_an_input_that_is_replaced_between_its_two_readings_is_read_anew(
    paused: Paused, threads: ThreadPoolExecutor
) -> None:
    ending = paused.begin("create labeled.work/plan.parquet", threads)
    paused.write_input("new.jsonl", ["6.jpg", "5.jpg", "new.jpg", "0.jpg"]).replace(paused.folder / "input.jsonl")
    assert ending.result().code == 0, ending.result().said
    assert paused.captions() == {path: f"caption of {path}" for path in ["6.jpg", "5.jpg", "new.jpg", "0.jpg"]}


def test_rows_that_another_script_appends_while_a_run_works_are_not_answered_again(
    paused: Paused, threads: ThreadPoolExecutor
) -> None:
    ending = paused.begin("write labeled.work/parts/000002.jsonl", threads)
    with paused.output.open("a") as theirs:
        theirs.write('{"image_path": "6.jpg", "own": "theirs"}\n{"image_path": "other.jpg", "own": "theirs"}\n')
    assert ending.result().code == 0, ending.result().said
    captions = paused.captions()
    assert [captions.pop(path) for path in ("6.jpg", "other.jpg")] == ["theirs", "theirs"]
    assert captions == {f"{number}.jpg": f"caption of {number}.jpg" for number in range(6)}


@pytest.mark.parametrize("call", [r"write labeled\.jsonl", r"fsync labeled\.jsonl"])
def test_a_row_that_is_appended_in_the_midst_of_the_merge_is_kept(
    paused: Paused, threads: ThreadPoolExecutor, call: str
) -> None:
    paused.output.write_text('{"image_path": "old.jpg", "own": "old"}\n')
    ending = paused.begin(call, threads)
    with paused.output.open("a") as theirs:
        theirs.write('{"image_path": "other.jpg", "own": "theirs"}\n')
    assert ending.result().code == 0, ending.result().said
    captions = paused.captions()
    assert captions["old.jpg"] == "old"
    assert captions["other.jpg"] == "theirs"
    assert len(captions) == 9


def test_a_row_that_is_deleted_while_a_run_works_stays_deleted_until_the_next(
    paused: Paused, threads: ThreadPoolExecutor
) -> None:
    paused.output.write_text('{"image_path": "2.jpg", "own": "bad"}\n{"image_path": "3.jpg", "own": "good"}\n')
    ending = paused.begin("write labeled.work/parts/000001.jsonl", threads)
    edited = paused.folder / "edited"
    edited.write_text('{"image_path": "3.jpg", "own": "good"}\n')
    edited.replace(paused.output)
    assert ending.result().code == 0, ending.result().said
    assert "2.jpg" not in paused.captions()
    assert paused.steps.do("annotate", folder=str(paused.folder)).code == 0
    captions = paused.captions()
    assert (captions["2.jpg"], captions["3.jpg"], len(captions)) == ("caption of 2.jpg", "good", 7)


def test_an_output_that_is_written_to_all_the_time_is_left_to_who_writes_it(
    paused: Paused, threads: ThreadPoolExecutor
) -> None:
    ending = paused.begin("create labeled.work/plan.json|create labeled.work/.plan.json", threads)
    with paused.output.open("a", buffering=1) as theirs:
        while not ending.done():
            theirs.write('{"image_path": "other.jpg"}\n')
            time.sleep(0.0005)
    outcome = ending.result()
    if outcome.code:
        assert "another program is writing to" in outcome.said or "attempts to read it" in outcome.said
        assert paused.steps.do("annotate", folder=str(paused.folder)).code == 0
    rows = Counter(row["image_path"] for row in lines_of(paused.output))
    assert {path: count for path, count in rows.items() if path != "other.jpg"} == {f"{n}.jpg": 1 for n in range(7)}


PHASES = {
    "planning": r"create labeled\.work/plan\.parquet",
    "planned": r"create labeled\.work/\.plan\.json",
    "annotating": r"write labeled\.work/parts/",
    "merging": r"write labeled\.jsonl",
    "merged": r"unlink labeled\.work/parts/",
    "reporting": r"create \.labeled\.report\.json",
}


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_is_ended_in_any_phase_lets_the_next_begin_once_it_writes_no_more(
    make_job: MakeJob, stand_in: StandIn, shim: Path, tmp_path: Path, phase: str
) -> None:
    job, log = make_job(90, distinct=5), tmp_path / "calls"
    stand_in.set_faults({"kind": "400", "count": None, "match": "00[0-9]7"})
    first = job.start(
        stand_in.url, "--chunk-size", "30", LD_PRELOAD=str(shim), FAULT_PREFIX=f"{job.folder}/", FAULT_LOG=str(log),
        FAULT_AT="1-100000", FAULT_MODE="slow:10",
    )  # fmt: skip
    while not (log.exists() and re.search(PHASES[phase], log.read_text())):
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    second = job.run(stand_in.url, "--chunk-size", "30")
    while "is being written by another run" in second.stderr:
        second = job.run(stand_in.url, "--chunk-size", "30")
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "Traceback" not in out + err + second.stdout + second.stderr
    assert second.returncode == 1, second.stderr
    answered = [row["image_path"] for row in lines_of(job.output)]
    failed = [row["image_path"] for row in lines_of(job.failures)]
    assert len(failed) == 9
    assert sorted(answered + failed) == job.names, "none lost, none twice, none in both"
    assert max(stand_in.asked().values()) <= 2


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("signals", [("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGHUP"), ("SIGINT", "SIGINT", "SIGTERM")])
def test_more_signals_than_one_disturb_nothing(
    make_job: MakeJob, stand_in: StandIn, shim: Path, tmp_path: Path, signals: tuple[str, ...]
) -> None:
    job, log = make_job(60, distinct=5), tmp_path / "calls"
    process = job.start(
        stand_in.url, LD_PRELOAD=str(shim), FAULT_PREFIX=f"{job.folder}/", FAULT_LOG=str(log), FAULT_AT="1-100000",
        FAULT_MODE="slow:10",
    )  # fmt: skip
    while not (log.exists() and re.search(PHASES["annotating"], log.read_text())):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    for name in signals:
        process.send_signal(signal.Signals[name])
        time.sleep(0.15)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "run the same command again to resume" in err
    assert job.run(stand_in.url).returncode == 0
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names


@pytest.mark.usefixtures("prefect_api")
def test_a_third_ctrl_c_ends_at_once(make_job: MakeJob, shim: Path, stand_in: StandIn, tmp_path: Path) -> None:
    job, log = make_job(30, distinct=5), tmp_path / "calls"
    process = job.start(
        stand_in.url, LD_PRELOAD=str(shim), FAULT_PREFIX=f"{job.folder}/labeled.work/plan", FAULT_LOG=str(log),
        FAULT_AT="1", FAULT_MODE="slow:60000",
    )  # fmt: skip
    while not log.exists() or not log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    try:
        _, err = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 130
    assert "Press Ctrl-C again to exit at once" in err
    assert job.run(stand_in.url).returncode == 0
    assert [row["image_path"] for row in lines_of(job.output)] == job.names
