"""What earlier versions wrote goes on: `tests/earlier/half_finished` is of a kill of the version of 2026-11-25."""

import json
import os
import random
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint

from blocks import AnnotationRecipe, VLLMServer
from demo.scenes import draw_scene
from deployments.setup import main as setup
from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect, lines_of
from tests.flows.test_annotate import annotate

EARLIER = Path(__file__).parent / "earlier" / "half_finished"
INPUT_CHANGED, OUTPUT_CHANGED = 1_795_629_286_366_792_314, 1_795_629_284_139_898_708  # ns; the plan knows them


@pytest.fixture
def half_finished(tmp_path: Path) -> Job:
    """20 images, of which the output has 5 and the parts 4 answers and a failure that cost a request."""
    job = Job(tmp_path / "job", [f"{number:04d}.jpg" for number in range(20)])
    shutil.copytree(EARLIER, job.folder)
    job.images.mkdir()
    rng = random.Random(20)
    for name in job.names:
        draw_scene(rng, 196, 168, 1).image.save(job.images / name, quality=90)
    plan = job.work / "plan.json"
    plan.write_text(plan.read_text().replace("FOLDER", str(job.folder)))
    os.utime(job.input, ns=(INPUT_CHANGED, INPUT_CHANGED))
    os.utime(job.output, ns=(OUTPUT_CHANGED, OUTPUT_CHANGED))
    return job


@pytest.mark.usefixtures("prefect_api")
async def test_a_half_finished_work_folder_goes_on_where_it_stopped(half_finished: Job, stand_in: StandIn) -> None:
    job, before = half_finished, half_finished.output.read_bytes()
    state = await annotate(job, stand_in, chunk_size=5)
    assert (
        state.message
        == "20 images: 14 answered (4 of them before an interruption), 5 already answered, 1 failed (1 rejected)"
    )
    asked = {f"caption of {number:04d}.jpg" for number in (6, 7, 8, 9, 14, 15, 16, 17, 18, 19)}
    assert stand_in.asked() == dict.fromkeys(asked, 1), "nothing that was answered, nor what had failed for good"
    assert job.output.read_bytes().startswith(before)
    answered = [row["image_path"] for row in lines_of(job.output)]
    assert [row["image_path"] for row in lines_of(job.failures)] == ["0003.jpg"]
    assert sorted([*answered, "0003.jpg"]) == job.names
    assert answered[5:] == sorted(answered[5:])
    assert [row["id"] - 10**18 for row in lines_of(job.output)] == [int(path[:4]) for path in answered]
    assert (job.work / "format").read_text() == "1\n"
    made_by = json.loads((job.folder / "labeled.report.json").read_text())["made_by"]
    assert [(maker["model"], maker["recipe"]) for maker in made_by] == [("stand-in-qwen2.5-vl", "d16ba0f1aa52")]


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("damaged", ["plan.json", "plan.parquet"])
@pytest.mark.parametrize("how", ["torn", "empty", "zeros", "gone"])
async def test_a_plan_that_is_damaged_costs_nothing_that_was_answered(
    half_finished: Job, stand_in: StandIn, damaged: str, how: str
) -> None:
    path = half_finished.work / damaged
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"torn": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}[how])
    stand_in.set_faults({"kind": "400", "count": None, "match": "0003"})
    state = await annotate(half_finished, stand_in, chunk_size=5)
    assert state.is_completed(), state.message
    answered = [row["image_path"] for row in lines_of(half_finished.output)]
    assert sorted([*answered, "0003.jpg"]) == half_finished.names
    assert [row["image_path"] for row in lines_of(half_finished.failures)] == ["0003.jpg"]
    assert not {f"caption of 00{number}.jpg" for number in (10, 11, 12, 13)} & set(stand_in.asked())


@pytest.mark.usefixtures("prefect_api")
async def test_a_plan_is_not_taken_for_rows_of_another(
    half_finished: Job, stand_in: StandIn, make_job: Callable[..., Job]
) -> None:
    other = make_job(15, half_finished.folder.with_name("other"))
    stand_in.set_faults({"kind": "400", "count": None, "match": "001"})
    assert (await annotate(other, stand_in, chunk_size=5, error_budget=0)).is_failed()
    shutil.copy(other.work / "plan.parquet", half_finished.work / "plan.parquet")
    stand_in.set_faults()
    state = await annotate(half_finished, stand_in, chunk_size=5)
    assert state.is_completed(), state.message
    rows = lines_of(half_finished.output) + lines_of(half_finished.failures)
    assert sorted(row["image_path"] for row in rows) == half_finished.names
    assert all(row["caption"] == f"caption of {row['image_path']}" for row in rows)


@pytest.fixture
def killed(tmp_path: Path) -> Job:
    """12 images of the version before the library moved out of `flows`: 4 in the output, 4 in the parts."""
    job = Job(tmp_path / "job", [f"{number:04d}.jpg" for number in range(12)])
    shutil.copytree(EARLIER.with_name("killed"), job.folder)
    job.images.mkdir()
    for name in job.names:
        draw_scene(random.Random(20), 196, 168, 1).image.save(job.images / name, quality=90)
    plan = json.loads((job.work / "plan.json").read_text().replace("FOLDER", str(job.folder)))
    (job.work / "plan.json").write_text(json.dumps(plan))
    for path, (_, changed) in ((job.input, plan["source"]["version"]), (job.output, plan["outputs"][0])):
        os.utime(path, ns=(changed, changed))
    return job


@pytest.mark.usefixtures("prefect_api")
async def test_a_run_that_was_killed_before_the_library_moved_resumes(killed: Job, stand_in: StandIn) -> None:
    before = killed.output.read_bytes()
    state = await annotate(killed, stand_in, chunk_size=3)
    assert state.message == "12 images: 8 answered (4 of them before an interruption), 4 already answered, 0 failed"
    assert sorted(stand_in.asked()) == [f"caption of {number:04d}.jpg" for number in (7, 9, 10, 11)]
    assert killed.output.read_bytes().startswith(before)
    assert sorted(row["image_path"] for row in lines_of(killed.output)) == killed.names


def test_blocks_that_were_saved_before_the_library_moved_load(
    prefect_api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = json.loads(EARLIER.with_name("prefect.json").read_text())
    for kind in (VLLMServer, AnnotationRecipe):
        kind.register_type_and_schema()
    for block in earlier["blocks"]:
        of_type = get_prefect(prefect_api, f"/block_types/slug/{block['type']}")["id"]
        schema = earlier["schemas"][block["type"]]
        saved = ask_prefect(prefect_api, "/block_schemas/", fields=schema["fields"], block_type_id=of_type)
        ask_prefect(
            prefect_api, "/block_documents/",
            name=block["name"], data=block["data"], block_schema_id=saved["id"], block_type_id=of_type,
        )  # fmt: skip
    server: Any = VLLMServer.load("old-endpoints")
    assert (server.urls(), server.model, server.resolved_api_key()) == (["http://gpu-1:8000/v1"], "m", "sk-old")
    started: Any = VLLMServer.load("old-start")
    start = started.start
    assert (start.tensor_parallel_size, start.variables, start.extra_arguments) == (2, {"A": "b"}, ["--seed=1"])
    wanted = {"name": {"any_": ["old-start"]}}
    (before,) = ask_prefect(prefect_api, "/block_documents/filter", block_documents=wanted)
    assert before["data"]["start"]["environment"] == {"A": "b"}, "as the version that saved it had it"
    for expected in ("saved again", ""):
        capsys.readouterr()
        assert setup([]) == 0
        assert ("old-start: saved again" in capsys.readouterr().out) == bool(expected)
    (after,) = ask_prefect(prefect_api, "/block_documents/filter", block_documents=wanted)
    assert after["data"]["start"]["environment"] == {"A": "********"}
    started = VLLMServer.load("old-start")
    assert (started.start.variables, started.start.extra_arguments) == ({"A": "b"}, ["--seed=1"])
    recipe: Any = AnnotationRecipe.load("old-recipe")
    assert (recipe.language, recipe.user_prompt, recipe.max_objects) == ("zh", "Say {caption}", 7)


def test_deployments_that_were_made_before_the_library_moved_find_their_flows() -> None:
    deployments = json.loads(EARLIER.with_name("prefect.json").read_text())["deployments"]
    assert len(deployments) == 7
    for deployment in deployments:
        assert not deployment["pull_steps"]
        flow: Any = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
        assert isinstance(flow, Flow), deployment["name"]


def get_prefect(api: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(api + path, timeout=30) as response:
        return dict(json.load(response))
