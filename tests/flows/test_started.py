"""Servers that the flow starts: used, stopped, reported when they fail, never left behind."""

import json
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stand_in.ports import free_port
from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.serving.conftest import arguments, make_model, port_of, qwen_config, vllm, wait_for_answers
from vllm_annotate.serving.probe import served_models
from vllm_annotate.serving.record import read_record, record_path

__all__ = ["make_model", "vllm"]  # fixtures
pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def started_job(make_job: Callable[..., Job], vllm: Path, make_model: Callable[..., Path]) -> Callable[..., Job]:
    """A job whose server.yaml says how to start the stand-in."""

    def make(count: int, **start: Any) -> Job:
        job = make_job(count)
        model = make_model(qwen_config("7B"), "qwen2.5-vl-7b")
        fields = {"model_path": str(model), "executable": str(vllm), "port": free_port()} | start
        (job.folder / "server.yaml").write_text(yaml.safe_dump({"start": fields}))
        return job

    return make


def run(job: Job, **environment: str) -> tuple[int, str]:
    ran = job.run_with(arguments(job), **environment)
    return ran.returncode, ran.stderr


def test_the_flow_starts_the_server_uses_it_and_stops_it(started_job: Callable[..., Job]) -> None:
    job = started_job(12)
    code, errors = run(job)
    assert code == 0, errors
    assert len(lines_of(job.output)) == 12
    assert served_models(f"http://127.0.0.1:{port_of(job)}/v1") is None
    report = json.loads((job.folder / "labeled.report.json").read_text())
    assert report["servers"][f"http://127.0.0.1:{port_of(job)}/v1"]["starts"] == 1
    assert list((job.work / "logs").glob("vllm-*.log"))
    assert "is ready after" in errors
    assert "Traceback" not in errors


def test_the_log_that_a_refusal_points_to_exists(started_job: Callable[..., Job]) -> None:
    job = started_job(2)
    code, errors = run(job, STAND_IN_DIES_SAYING="torch.OutOfMemoryError: CUDA out of memory.")
    assert code == 2, errors
    assert "torch.OutOfMemoryError" in Path(errors.strip().rpartition("log: ")[2]).read_text()
    assert run(job)[0] == 0


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"tensor_parallel_size": 3}, "TP=3 cannot split 28 heads: TP can be 1, 2, 4"),
        ({"model_path": "/nowhere/qwen"}, "model folder /nowhere/qwen does not exist"),
        ({"max_model_len": 200_000}, "max_model_len 200000 exceeds the model's limit of 128000"),
        ({"gpus": [7]}, "GPU 7 does not exist"),
        ({"executable": "no-such-vllm"}, "command 'no-such-vllm' not found"),
        ({"quantization": "awq"}, "quantization is awq, but qwen2.5-vl-7b is not quantized"),
        ({"port": 80}, "server field start.port 80: Input should be greater than or equal to 1024"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    started_job: Callable[..., Job], start: dict[str, Any], message: str
) -> None:
    job = started_job(3, **start)
    code, errors = run(job)
    assert code == 2
    assert f"error: {message}" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not job.work.exists()


def test_tp_3_on_40_heads_is_refused_with_what_would_work(
    started_job: Callable[..., Job], make_model: Callable[..., Path]
) -> None:
    model = make_model(qwen_config("32B"), "Qwen2.5-VL-32B-Instruct")
    code, errors = run(started_job(2, model_path=str(model), tensor_parallel_size=3))
    assert code == 2
    assert "TP=3 cannot split 40 heads: TP can be 1, 2, 4, 8; or use replicas, or PP" in errors


def test_a_taken_port_is_refused_with_a_free_one(started_job: Callable[..., Job], stand_in: StandIn) -> None:
    code, errors = run(started_job(2, port=stand_in.port))
    assert code == 2
    assert f"port {stand_in.port} is in use by a server of stand-in-qwen2.5-vl: set port to a free one" in errors


def test_a_start_that_fails_ends_the_command_with_its_cause(started_job: Callable[..., Job]) -> None:
    job = started_job(3)
    code, errors = run(job, STAND_IN_DIES_SAYING="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.")
    assert code == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: the server at http://127.0.0.1:")
    assert "CUDA out of memory. Tried to allocate 2 GiB.: lower max_model_len" in last
    assert "Traceback" not in errors
    assert not job.output.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_its_server_with_it(started_job: Callable[..., Job], number: signal.Signals) -> None:
    job = started_job(60, environment={"STAND_IN_PREFILL_SECONDS": "1", "STAND_IN_SLOTS": "2"})
    process = job.start_with(arguments(job))
    record = wait_for_answers(job)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not record.group


def test_after_a_sigkill_the_next_run_finds_the_server_and_resumes(started_job: Callable[..., Job]) -> None:
    job = started_job(40, environment={"STAND_IN_PREFILL_SECONDS": "0.3", "STAND_IN_SLOTS": "4"})
    process = job.start_with(arguments(job))
    record = wait_for_answers(job)
    process.kill()
    process.communicate()
    code, errors = run(job)
    assert code == 0, errors
    assert "which an earlier run left running" in errors
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names
    assert not record.group


def test_a_folder_that_vllm_might_read_is_accepted_and_has_no_effect(
    started_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = started_job(6, keep=True, allowed_media_folder=str(tmp_path / "job" / "images"))
    try:
        code, errors = run(job)
        with urllib.request.urlopen(f"http://127.0.0.1:{port_of(job)}/stand_in/asked") as response:
            schemes = json.load(response)["schemes"]
    finally:
        record = read_record(record_path(port_of(job)))
        assert record is not None
        record.end()
    assert code == 0, errors
    assert schemes == {"data": 6}
    assert errors.count("allowed_media_folder has no effect: images travel with the request; remove it") == 1
