"""Real NVML calls through the real binding, to a compiled fake with two GPUs or to the driver's library."""

import json
import os
import time
from pathlib import Path

import polars as pl
import pytest

from stand_in.nvml import compile_nvml
from stand_in.process import StandIn
from tests.conftest import Job
from vllm_annotate.telemetry.nvml import GpuWatch, WhichGpus

SLOW = ("--canned", "--slots", "8", "--prefill-seconds", "0.5")


@pytest.fixture(scope="module")
def two_cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libnvidia-ml.so.1 for LD_LIBRARY_PATH."""
    folder = compile_nvml(tmp_path_factory.mktemp("nvml"))
    if folder is None:
        pytest.skip("no C compiler: install gcc")
    return folder


def report_of(job: Job) -> dict[str, dict[str, dict[str, float | None]]]:
    report: dict[str, dict[str, dict[str, float | None]]] = json.loads(
        (job.folder / "labeled.report.json").read_bytes()
    )["telemetry"]
    return report


def test_a_run_records_the_gpus_and_continues_when_one_is_lost(make_job, prefect_api, two_cards) -> None:  # type: ignore[no-untyped-def]
    job, lost = make_job(140), two_cards / "lost"
    with StandIn.started(*SLOW) as server:
        process = job.start(
            server.url, "--max-concurrency", "8", LD_LIBRARY_PATH=str(two_cards), FAKE_NVML_LOST=str(lost)
        )
        while not server.asked():
            time.sleep(0.1)
        time.sleep(3)
        lost.touch()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "GPU 1 (Fake B) is lost: GPU is lost" in err
    assert "cannot tell which GPUs the servers use" in err
    telemetry = report_of(job)
    first, second = telemetry["gpus"]["0 Fake A"], telemetry["gpus"]["1 Fake B"]
    assert (first["utilisation_mean"], second["utilisation_mean"]) == (90, 40)
    assert (first["power_watts_mean"], second["power_watts_mean"]) == (300, None)
    assert (first["memory_used_mib_max"], first["memory_total_mib"]) == (20480, 24576)
    assert (first["power_capped_share"], first["heat_throttled_share"]) == (1, 0)
    assert first["energy_wh"] is not None
    assert second["energy_wh"] is None
    seen = [float(gpu["last_seen_second"] or 0) for gpu in (first, second)]
    assert seen[1] < seen[0] - 2, "the lost GPU's samples end, the other's continue"
    samples = pl.read_parquet(job.work / "telemetry" / "*.parquet")
    assert set(samples["subject"]) == {"gpu", "server", "client"}
    assert samples.filter(name="0 Fake A")["power_watts"].unique().to_list() == [300]
    answered = samples.filter(subject="client")["images_per_second"].mean()
    assert isinstance(answered, float)
    assert 8 < answered < 20


def test_only_the_gpus_that_the_server_uses_are_read(make_job, prefect_api, two_cards) -> None:  # type: ignore[no-untyped-def]
    job = make_job(20)
    with StandIn.started(*SLOW) as server:
        ran = job.run(server.url, LD_LIBRARY_PATH=str(two_cards), FAKE_NVML_PID_1=str(server.pid), FAKE_NVML_PID="1")
    assert ran.returncode == 0, ran.stderr
    assert list(report_of(job)["gpus"]) == ["1 Fake B"]
    assert not report_of(job)["missing"]


def test_missing_nvml_and_remote_servers_are_noted() -> None:
    watch = GpuWatch(WhichGpus(remote=["http://gpu7:8000/v1"]))
    watch.start()
    watch.stop()
    assert watch.notes == ["the GPUs of http://gpu7:8000/v1 are on other machines and cannot be read from here"]
    assert not watch.readings


def test_the_drivers_library_is_read_if_there_is_one() -> None:
    watch = GpuWatch(WhichGpus(ports=[os.getpid() % 1000 + 1]))
    watch.start()
    deadline = time.monotonic() + 30
    while not watch.readings and time.monotonic() < deadline and not any("NVIDIA" in note for note in watch.notes):
        time.sleep(0.1)
    if not watch.readings:
        assert any("cannot read NVIDIA GPUs on this machine" in note for note in watch.notes)
        pytest.skip(watch.notes[0])
    for reading in watch.readings.values():
        print(reading)
        assert reading.memory_total_mib
        assert reading.memory_used_mib is not None
        assert 0 < reading.memory_used_mib <= reading.memory_total_mib
        assert reading.utilisation is None or 0 <= reading.utilisation <= 100
    watch.stop()
