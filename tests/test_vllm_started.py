"""A real vLLM on CPU that the flow manages: used, stopped, killed, restarted, refused with the cause."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from demo.processes import TINY_GROUNDER, TINY_GROUNDER_RECIPE, TINY_GROUNDER_SERVER
from demo.scenes import write_small_folder
from stand_in.ports import free_port
from tests.conftest import ROOT, Job, lines_of
from tests.serving.conftest import arguments, port_of, wait_for_answers
from vllm_annotate.serving.probe import served_models

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def make_job(folder: Path, count: int = 40, **start: Any) -> Job:
    """A job with the demo's server.yaml, on a free port, with changes."""
    write_small_folder(folder, count, shapes=1, seed=5)
    job = Job(folder, [f"{number:04d}.png" for number in range(count)])
    fields = yaml.safe_load(TINY_GROUNDER_SERVER.read_text())
    own = {
        "port": free_port(),
        "model_path": str(TINY_GROUNDER),
        "executable": str(ROOT / ".venv-vllm" / "bin" / "vllm"),
    }
    extra = start.pop("extra_arguments", [])
    fields["start"] |= own | start
    fields["start"]["extra_arguments"] += extra
    (folder / "server.yaml").write_text(yaml.safe_dump(fields))
    return job


def run(job: Job) -> tuple[int, str]:
    ran = job.run_with(arguments(job, "--recipe", str(TINY_GROUNDER_RECIPE)))
    print(ran.stderr)
    return ran.returncode, ran.stderr


def url_of(job: Job) -> str:
    return f"http://127.0.0.1:{port_of(job)}/v1"


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def test_started_used_and_stopped_with_no_process_left(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    for name in job.names[:30]:  # what is a JPEG of the right size needs no change; the others are converted
        with Image.open(job.images / name) as image:
            image.convert("RGB").save(job.images / name, "JPEG", quality=95)
    (job.images / job.names[0]).rename(job.images / "名 %41 &.png")
    job.write_input([{"image_path": "名 %41 &.png", "caption": "a red circle"}, *job.rows()[1:]])
    process = job.start_with(arguments(job, "--recipe", str(TINY_GROUNDER_RECIPE)))
    record = wait_for_answers(job, 300)
    assert len(record.group) >= 3  # guardian, API server, engine
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert not record.group
    assert served_models(url_of(job)) is None
    rows = lines_of(job.output)
    assert len(rows) == 40
    assert sum(len(row["objects"]) == 1 for row in rows) >= 38, "one shape each"


def test_a_killed_engine_is_replaced_and_no_image_fails(tmp_path: Path) -> None:
    job = make_job(tmp_path, 400)
    process = job.start_with(arguments(job, "--recipe", str(TINY_GROUNDER_RECIPE)))
    record = wait_for_answers(job, 300)
    engines = [pid for pid in record.group if "EngineCore" in name_of(pid)]
    assert engines
    os.kill(engines[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    print(errors)
    assert process.returncode == 0, errors
    assert "died; restarting it (restart 1)" in errors
    assert len(lines_of(job.output)) == 400
    assert not lines_of(job.failures)
    report = json.loads((tmp_path / "labeled.report.json").read_text())
    assert report["servers"][url_of(job)]["starts"] == 2


def test_after_a_killed_run_the_next_finds_the_server_and_stops_it(tmp_path: Path) -> None:
    job = make_job(tmp_path, 400)
    process = job.start_with(arguments(job, "--recipe", str(TINY_GROUNDER_RECIPE)))
    record = wait_for_answers(job, 300)
    process.kill()
    process.communicate()
    code, errors = run(job)
    assert code == 0, errors
    assert "which an earlier run left running" in errors
    assert len(lines_of(job.output)) == 400
    assert not record.group


@pytest.mark.prove  # that its guardian ends it is tested with the stand-in, and that all of it ends above
def test_a_killed_run_that_has_no_successor_leaves_no_server(tmp_path: Path) -> None:
    job = make_job(tmp_path, 400, linger_seconds=2)
    process = job.start_with(arguments(job, "--recipe", str(TINY_GROUNDER_RECIPE)))
    record = wait_for_answers(job, 300)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while record.group and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not record.group


@pytest.mark.parametrize(
    ("extra", "cause", "remedy"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag", "remove it from extra_arguments"),
        (
            ["--tensor-parallel-size=3"],
            "Not enough allowed NUMA nodes",
            "lower tensor_parallel_size",
        ),
        (["--max-model-len=1000000"], "is greater than the derived max_model_len", "to the model's limit"),
        (["--quantization=awq"], "Cannot find the config file for awq", "leave quantization empty"),
    ],
)
def test_what_preflight_cannot_see_is_reported_from_the_log(
    tmp_path: Path, extra: list[str], cause: str, remedy: str
) -> None:
    code, errors = run(make_job(tmp_path, 2, extra_arguments=extra))
    assert code == 2
    last = errors.strip().splitlines()[-1]
    assert "exited during startup" in last
    assert cause in last
    assert remedy in last
