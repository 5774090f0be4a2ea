"""docs/deploy.md and the deployment of docs/scale-out.md: who types their commands gets what they say."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks import VLLMServer
from flows.support.prefect_server import answers
from stand_in.ports import free_port
from stand_in.process import StandIn
from tests.conftest import ROOT, Job, lines_of
from tests.serving.conftest import launch, make_model, vllm  # noqa: F401 - fixtures
from tests.support.pages import blocks_of
from vllm_annotate.serving.launch import Launch

MakeJob = Callable[..., Job]

pytestmark = pytest.mark.deployed


def command_blocks(page: str) -> list[str]:
    """The blocks of a page that are to be typed: those of no language."""
    return [block.text for block in blocks_of(ROOT / "docs" / page) if not block.language]


@contextmanager
def service(command: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """The commands that need their own terminal."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("vllm")
def test_every_command_of_the_pages_does_what_they_say(
    tmp_path: Path,
    make_job: MakeJob,
    stand_in: StandIn,
    launch: Callable[..., Launch],  # noqa: F811
) -> None:
    data, port = tmp_path / "data", free_port()
    job = make_job(12, folder=data)
    job.input.rename(data / "captions.jsonl")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_API_PORT": str(port), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    own = {"http://127.0.0.1:4200": f"http://127.0.0.1:{port}", "/data": str(data), "http://gpu-1:8000": stand_in.url,
           "slack-webhook/team": "custom-webhook/team", '"shards": 8': '"shards": 2'}  # fmt: skip
    text = "\0".join([*command_blocks("deploy.md"), *command_blocks("scale-out.md")])
    for written, here in own.items():
        assert written in text
        text = text.replace(written, here)
    server, *blocks = text.split("\0")
    assert server == "prefect server start\n"
    done: list[str] = []
    with service(server, environment, tmp_path / "server.log"):
        api = environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        while not answers(api):
            time.sleep(0.5)
        with temporary_settings({PREFECT_API_URL: api}):
            CustomWebhookNotificationBlock(name="team", url=stand_in.url).save("team")
            VLLMServer(start=launch()).save("resident")
        setup, worker, *others = blocks
        assert ran(setup, environment).count("vllm-server/resident: exists") == 1
        with service(worker, environment, tmp_path / "worker.log"):
            for block in others:
                if "deployment run annotate" in block:  # also annotate-sharded
                    for path in data.glob("labeled.*"):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                done.append(ran(block, environment))
                if "deployment run annotate" in block:
                    assert [row["image_path"] for row in lines_of(job.output)] == job.names, done[-1]
    everything = "".join(done)
    assert everything.count("Completed") >= 6
    assert "0 1 * * *" in done[2]
    assert any("tell of runs that fail" in printed for printed in done)
    assert "annotate-sharded" in blocks[-1]
    with tarfile.open(data / "backup.tar.gz") as backup:
        assert "labeled.work/recipe.json" in backup.getnames()
    assert json.loads((data / "labeled.report.json").read_text())["images"]["answered"] == 12


def ran(block: str, environment: dict[str, str]) -> str:
    """The output of a block of commands; each must succeed."""
    done = subprocess.run(
        ["bash", "-ec", block],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, block + done.stdout + done.stderr
    return done.stdout + done.stderr
