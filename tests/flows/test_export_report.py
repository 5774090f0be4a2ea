"""report.html, rebuilt from the files of a run."""

import asyncio
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.export_report import export_report
from stand_in.process import StandIn
from tests.conftest import Job
from vllm_annotate.errors import UsageError
from vllm_annotate.pipeline.report_page import write_page_again
from vllm_annotate.results.files import Files
from vllm_annotate.storage.workspace import Workspace

MakeJob = Callable[..., Job]


@pytest.mark.usefixtures("prefect_api")
async def test_the_page_comes_back_with_its_charts_and_gallery(make_job: MakeJob) -> None:
    job = make_job(24)
    with StandIn.started("--prefill-seconds", "0.5") as server:
        assert job.run(server.url, "--max-concurrency", "2").returncode == 0
    page = job.folder / "labeled.report.html"
    before = page.read_text()
    page.unlink()
    state = await export_report(output=job.output, image_root=job.images, return_state=True)
    assert state.is_completed(), state.message
    after = page.read_text()
    for part in (r"<h2>[^<]*</h2>", r'<article class="card[^>]*>', r"<td>[^<]*</td>"):
        assert re.findall(part, after) == re.findall(part, before), part
    assert after.count("<svg") == before.count("<svg") > 24, "the charts too, from the samples on disk"


@pytest.mark.usefixtures("prefect_api")
async def test_no_page_is_written_while_a_run_writes_the_output(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    assert job.run(stand_in.url).returncode == 0
    page = job.folder / "labeled.report.html"
    before = page.read_bytes()
    with (job.input).open("a") as file:
        file.write(json.dumps({"image_path": "more.jpg", "caption": "more"}) + "\n")
    (job.images / "more.jpg").write_bytes((job.images / job.names[0]).read_bytes())
    with StandIn.started() as slow:
        slow.set_faults({"kind": "stall"})
        process = job.start(slow.url)
        try:
            while not slow.asked():
                assert process.poll() is None, process.communicate()
                await asyncio.sleep(0.1)
            process.send_signal(signal.SIGSTOP)
            state = await export_report(output=job.output, image_root=job.images, return_state=True)
        finally:
            process.kill()
            process.communicate()
    assert state.is_failed()
    assert f"output {job.output} is being written by another run (process {process.pid} on" in str(state.message)
    assert page.read_bytes() == before


def test_an_unreadable_report_is_refused(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "labeled.jsonl")
    with pytest.raises(UsageError, match=r"does not exist: finish a run of .*, which writes it"):
        write_page_again(Files(workspace), tmp_path)
    damages: list[dict[str, object]] = [
        {},
        {"images": 5},
        {"images": {}, "telemetry": [], "bottleneck": {}, "quality": {}},
    ]
    for damaged in damages:
        workspace.report.write_text(json.dumps(damaged))
        with pytest.raises(UsageError, match="is corrupt or of another version"):
            write_page_again(Files(workspace), tmp_path)
    assert not workspace.page.exists()
