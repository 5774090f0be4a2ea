"""An audit as a flow: what it asks again, its figures, its artifact."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks import AnnotationRecipe, VLLMServer
from flows.audit import audit
from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect, lines_of
from tests.evaluation.scenes import write_rows
from tests.flows.test_annotate import annotate

MakeJob = Callable[..., Job]


async def test_it_asks_the_run_s_server_again_and_shows_the_agreement_as_an_artifact(
    make_job: MakeJob, stand_in: StandIn, prefect_api: str
) -> None:
    job = make_job(30, distinct=6)
    await annotate(job, stand_in, recipe=AnnotationRecipe(max_objects=7))
    before = job.output.read_bytes()
    truth = write_rows(job.folder / "truth.jsonl", lines_of(job.output))
    stand_in.forget()
    state = await audit(job.output, sample=25, asks=2, truth=truth, return_state=True)
    assert state.is_completed(), state.message
    assert str(state.message).startswith("labeled.jsonl: agreement 1.000")
    assert "25 of 30 answered images, each compared with 2 other answers" in str(state.message)
    assert sum(stand_in.asked().values()) == 50
    assert job.output.read_bytes() == before
    run = str(state.state_details.flow_run_id)
    (artifact,) = ask_prefect(prefect_api, "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    assert artifact["key"] == "annotate-audit"
    assert artifact["description"] == state.message
    assert "| agreement of a box | probability that it is right | boxes of the truth |" in artifact["data"]
    assert "| size of box in pixels | agreement | boxes |" in artifact["data"]
    recipe = json.loads(next((job.folder / "labeled.audit").glob("*/ask-1.work/job.json")).read_text())["recipe"]
    assert (recipe["max_objects"], recipe["temperature"]) == (7, 0.7)


@pytest.mark.usefixtures("prefect_api")
async def test_images_without_a_further_answer_fail_it_and_the_next_run_asks_for_them_alone(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(4)
    await annotate(job, stand_in)
    image = job.images / job.names[0]
    content = image.read_bytes()
    image.unlink()
    state = await audit(job.output, asks=1, return_state=True)
    assert state.is_failed()
    assert "3 of 4 answered images" in str(state.message)
    assert "run it again to ask for them" in str(state.message)
    image.write_bytes(content)
    stand_in.forget()
    state = await audit(job.output, asks=1, return_state=True)
    assert state.is_completed(), state.message
    assert sum(stand_in.asked().values()) == 1


@pytest.mark.usefixtures("prefect_api")
async def test_what_is_given_is_asked_instead_of_what_the_run_had(
    make_job: MakeJob, stand_in: StandIn, nobody: str
) -> None:
    job = make_job(3)
    await annotate(job, stand_in)
    state = await audit(job.output, server=VLLMServer(endpoints=[f"{nobody}/v1"]), return_state=True)
    assert state.is_failed()
    assert "no vLLM server" in str(state.message)
    state = await audit(job.output, image_root=job.folder / "none", return_state=True)
    assert state.is_failed()
    assert "none' is not a folder" in str(state.message)


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("none.jsonl", "none.jsonl is recorded beside it: correct output, or set image_root"),
        ("s3://bucket/labeled.jsonl", "output 's3://bucket/labeled.jsonl' is a URL, and only local files are read"),
        ("broken.jsonl", "recipe of the last run of"),
    ],
)
async def test_what_cannot_be_audited_fails_with_the_remedy(output: str, message: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "broken.jsonl", [{"image_path": "a.jpg", "objects": []}])
    (tmp_path / "broken.work").mkdir()
    saved = {"image_root": str(tmp_path), "recipe": {"max_objects": -1}}
    (tmp_path / "broken.work" / "job.json").write_text(json.dumps(saved))
    state = await audit(output if "://" in output else tmp_path / output, return_state=True)
    assert state.is_failed()
    assert message in str(state.message)
