"""What an operator needs: it tells of failures, survives a dead worker, and leaves nothing behind."""

import http.server
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.support.prefect_server import answers
from stand_in.ports import free_port
from stand_in.process import StandIn
from tests.conftest import ROOT, Job, ask_prefect, lines_of
from tests.deployed.conftest import ON_BOTH_DATABASES, Deployed, descendants
from tests.serving.conftest import launch, make_model, vllm  # noqa: F401 - fixtures
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.probe import served_models

MakeJob = Callable[..., Job]
Parameters = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.deployed


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A chat webhook, and the messages it received."""
    heard: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("worker")
def test_a_failed_run_is_reported_to_the_webhook(
    deployed: Deployed, make_job: MakeJob, parameters: Parameters, nobody: str
) -> None:
    with webhook() as (url, heard):
        setup = [sys.executable, "-m", "deployments.setup", "--notify"]
        unknown = subprocess.run(
            [*setup, "slack-webhook/nobody"], cwd=ROOT, env=deployed.environment, text=True, capture_output=True
        )
        assert (unknown.returncode, "block 'slack-webhook/nobody' does not exist" in unknown.stderr) == (2, True)
        with temporary_settings({PREFECT_API_URL: deployed.api}):
            text = {"text": "{{subject}} {{body}}"}
            CustomWebhookNotificationBlock(name="team", url=url, json_data=text).save("team", overwrite=True)
        for _ in range(2):
            subprocess.run([*setup, "custom-webhook/team"], cwd=ROOT, env=deployed.environment, check=True)
        run = deployed.run("annotate-images/annotate", **parameters(make_job(1), nobody, server_wait_seconds=0))
        assert deployed.wait_for(run, "Failed", "Completed")["name"] == "Failed"
        deadline = time.monotonic() + 60
        while not heard and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(heard) == 1, "once, although it was set up twice"
        assert f"annotate labeled.jsonl, on {platform.node()}: Failed" in heard[0]["text"]
        assert "no vLLM server at" in heard[0]["text"]
        assert run in heard[0]["text"], "with a link to the run in the UI"


@pytest.mark.usefixtures("worker", "vllm")
def test_a_run_that_is_cancelled_at_full_speed_leaves_no_server_behind(
    deployed: Deployed,
    make_job: MakeJob,
    parameters: Parameters,
    launch: Callable[..., Launch],  # noqa: F811
) -> None:
    job, start = make_job(20_000, distinct=20), launch(extra_arguments=["--canned"], linger_seconds=60)
    server = {"server": {"start": start.model_dump(mode="json")}}
    run = deployed.run("annotate-images/annotate", **(parameters(job, "", max_concurrency=64) | server))
    deadline = time.monotonic() + 90
    while not any(part.stat().st_size for part in job.work.glob("parts/*.jsonl")):
        assert time.monotonic() < deadline, deployed.state_of(run)
        time.sleep(0.2)
    assert served_models(start.urls()[0]) is not None
    ask_prefect(deployed.api, f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    deployed.wait_for(run, "Cancelled", seconds=60)
    deadline = time.monotonic() + 30  # less than the server of a run that Prefect had to kill would linger
    while served_models(start.urls()[0]) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@ON_BOTH_DATABASES
@pytest.mark.usefixtures("no_worker")
def test_a_run_whose_worker_is_killed_is_crashed_by_the_automation_and_the_next_goes_on(
    deployed: Deployed, make_job: MakeJob, parameters: Parameters
) -> None:
    worker = deployed.start_worker("doomed")
    with StandIn.started("--canned", "--prefill-seconds", "0.3") as server:
        job = make_job(300)
        run = deployed.run("annotate-images/annotate", **parameters(job, server.url, max_concurrency=4))
        while len(server.asked()) < 20:
            time.sleep(0.2)
        for process in [worker.pid, *descendants(worker.pid)]:
            os.kill(process, signal.SIGKILL)
        worker.wait()
        asked = len(server.asked())
        others = []  # that a worker left before their first heartbeat: too short a time to kill one in
        for names in (["Pending"], ["Pending", "Submitting"], ["Running"]):
            others.append(deployed.run("annotate-images/shard", **parameters(job, server.url)))
            for name in names:
                state = {"type": name.upper().replace("SUBMITTING", "PENDING"), "name": name}
                ask_prefect(deployed.api, f"/flow_runs/{others[-1]}/set_state", state=state, force=True)
        for lost in (run, *others):
            assert "no heartbeat" in deployed.wait_for(lost, "Crashed", seconds=200)["message"]
        server.forget()
        successor = deployed.start_worker("successor")
        try:
            again = deployed.run("annotate-images/annotate", **parameters(job, server.url, max_concurrency=32))
            assert deployed.wait_for(again, "Completed", "Failed", "Crashed")["name"] == "Completed"
        finally:
            successor.terminate()
            successor.wait(30)
        assert len(server.asked()) <= 300 - asked + 4
    assert [row["image_path"] for row in lines_of(job.output)] == job.names, "0 lost, 0 twice"


def test_deploy_local_brings_everything_up_and_takes_it_down(
    tmp_path: Path, make_job: MakeJob, stand_in: StandIn, parameters: Parameters
) -> None:
    port = free_port()
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect"), "XDG_STATE_HOME": str(tmp_path / "state")}
    in_background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # as a script starts it
    command = [*in_background, sys.executable, "-m", "deployments.local", "--port", str(port)]
    local = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)
    try:
        assert local.stdout is not None
        said = local.stdout.readline() + local.stdout.readline()
        assert f"Prefect UI: http://127.0.0.1:{port}/deployments" in said
        there = Deployed(f"http://127.0.0.1:{port}/api", tmp_path, environment)
        job = make_job(3)
        run = there.run("annotate-images/annotate", **parameters(job, stand_in.url))
        assert there.wait_for(run, "Completed", "Failed", "Crashed")["name"] == "Completed"
        assert len(lines_of(job.output)) == 3
    finally:
        local.send_signal(signal.SIGINT)
        local.communicate(timeout=60)
    assert local.returncode == 0
    assert not answers(f"http://127.0.0.1:{port}/api")


@pytest.mark.parametrize("name", ["prefect-server", "prefect-worker"])
def test_the_systemd_units_are_valid_and_start_existing_commands(name: str, tmp_path: Path) -> None:
    text = (ROOT / "deployments" / "systemd" / f"{name}.service").read_text()
    started = re.findall(r"^ExecStart=/opt/vllm-annotate/.venv/bin/prefect (.*)$", text, re.MULTILINE)
    assert len(started) == 1
    words = started[0].split()
    helped = subprocess.run(
        [Path(sys.executable).with_name("prefect"), *words[:2], "--help"], capture_output=True, text=True, check=True
    )
    assert all(word in helped.stdout for word in words[2:] if word.startswith("--"))
    if (verify := shutil.which("systemd-analyze")) is not None:
        unit = tmp_path / f"{name}.service"
        unit.write_text(
            text.replace("/opt/vllm-annotate/.venv/bin/prefect", "/bin/true").replace("User=prefect", "User=root")
        )
        checked = subprocess.run([verify, "verify", str(unit)], capture_output=True, text=True)
        assert name not in checked.stderr, checked.stderr
