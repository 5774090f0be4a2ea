"""Runs that resume: what is requested again, and what never is."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from blocks import AnnotationRecipe
from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.flows.test_annotate import annotate, chunk_states

pytestmark = pytest.mark.usefixtures("prefect_api")
MakeJob = Callable[..., Job]


async def test_a_second_run_requests_nothing(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(25)
    await annotate(job, stand_in)
    before = job.output.read_bytes()
    stand_in.forget()
    state = await annotate(job, stand_in)
    assert state.message == "25 images: 0 answered, 25 already answered, 0 failed"
    assert stand_in.asked() == {}
    assert job.output.read_bytes() == before


async def test_after_an_edit_of_the_input_only_new_image_paths_are_requested(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(24)
    rows = job.rows()
    job.write_input(rows[:20])
    await annotate(job, stand_in)
    before = job.output.read_bytes()
    stand_in.forget()
    edited = [row | {"caption": "changed"} for row in rows[2:20]] + rows[20:]
    random.Random(0).shuffle(edited)
    job.write_input(edited)
    await annotate(job, stand_in)
    new = [row["image_path"] for row in edited if row["image_path"] in job.names[20:]]
    assert sorted(stand_in.asked()) == sorted(f"caption of {name}" for name in new)
    assert job.output.read_bytes().startswith(before)
    assert [row["image_path"] for row in lines_of(job.output)[20:]] == new


async def test_an_input_that_changes_during_a_run_is_reported_and_the_next_run_annotates_the_rest(
    make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(12)
    rows = job.rows()
    job.write_input(rows[:6])
    with StandIn.started("--canned", "--prefill-seconds", "0.3") as server:
        running = asyncio.create_task(annotate(job, server, max_concurrency=2))
        while not await asyncio.to_thread(server.asked):
            await asyncio.sleep(0.05)
        job.write_input(rows)
        assert (await running).message == "6 images: 6 answered, 0 failed"
        assert "input.jsonl has changed since this run planned it: run again to annotate the changes" in caplog.text
        assert "6 answered, 6 already answered" in str((await annotate(job, server)).message)
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


async def test_an_output_of_the_older_script_is_resumed_from(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    older = b'{"image_path": "0003.jpg", "caption": "c", "vlm_output": "t",  "annotations": {}, "objects": []}\n'
    job.output.write_bytes(older + b'{"image_path": "0001.jpg", "capt')
    state = await annotate(job, stand_in)
    assert state.message == "6 images: 5 answered, 1 already answered, 0 failed"
    assert job.output.read_bytes().startswith(older)
    assert [row["image_path"][3] for row in lines_of(job.output)] == list("301245")


async def test_failed_chunks_run_again_in_a_new_run_and_completed_ones_come_back_cached(
    make_job: MakeJob, stand_in: StandIn, prefect_api: str
) -> None:
    job = make_job(40)
    stand_in.set_faults({"kind": "400", "count": None, "match": "001[5-9]"})
    state = await annotate(job, stand_in, max_concurrency=1, error_budget=0)
    assert state.is_failed()
    answered = {row["image_path"] for row in lines_of(job.output)}
    stand_in.set_faults()
    stand_in.forget()
    state = await annotate(job, stand_in)
    assert state.is_completed()
    assert {text.removeprefix("caption of ") for text in stand_in.asked()} == set(job.names) - answered
    assert await chunk_states(prefect_api, state) == {1: "Cached", 2: "Completed", 3: "Cached", 4: "Cached"}
    assert not job.folder.joinpath("labeled.work/cache").exists(), "results of a plan that is finished"
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names


async def test_a_cached_chunk_whose_rows_are_gone_runs_again(
    make_job: MakeJob, stand_in: StandIn, prefect_api: str
) -> None:
    job = make_job(20)
    await annotate(job, stand_in)
    job.output.unlink()
    stand_in.forget()
    state = await annotate(job, stand_in)
    assert len(stand_in.asked()) == 20
    assert await chunk_states(prefect_api, state) == {1: "Completed", 2: "Completed"}
    assert len(lines_of(job.output)) == 20


@pytest.mark.parametrize(
    "change", [{"recipe": AnnotationRecipe(temperature=0.7)}, {"recipe": AnnotationRecipe(language="zh")}]
)
async def test_another_recipe_is_never_mixed_into_an_output(
    make_job: MakeJob, stand_in: StandIn, change: dict[str, Any]
) -> None:
    job = make_job(3)
    await annotate(job, stand_in)
    before = job.output.read_bytes()
    job.write_input([*job.rows(), {"image_path": "new.jpg", "caption": ""}])
    state = await annotate(job, stand_in, **change)
    assert state.is_failed()
    assert "another recipe" in str(state.message)
    assert next(iter(change["recipe"].model_fields_set)) in str(state.message)
    assert job.output.read_bytes() == before


async def test_an_output_deleted_during_an_unfinished_job_is_rewritten_in_full(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(40)
    rows = job.rows()
    job.write_input(rows[:20])
    await annotate(job, stand_in)
    job.write_input(rows)
    stand_in.set_faults({"kind": "400", "count": None, "match": "003"})
    assert (await annotate(job, stand_in, error_budget=0)).is_failed()
    job.output.unlink()
    stand_in.set_faults()
    state = await annotate(job, stand_in)
    assert state.message == "40 images: 40 answered, 0 failed"
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names


async def test_files_that_were_missing_in_an_interrupted_run_are_retried(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(20)
    hidden = job.images.rename(job.folder / "hidden")
    job.images.mkdir()
    stand_in.set_faults({"kind": "stall", "count": None})
    (job.images / "0019.jpg").write_bytes((hidden / "0019.jpg").read_bytes())
    interrupted = asyncio.create_task(annotate(job, stand_in, chunk_size=20, error_budget=1))
    while not stand_in.asked():
        await asyncio.sleep(0.05)
    interrupted.cancel()
    await asyncio.gather(interrupted, return_exceptions=True)
    assert len(lines_of(next(job.work.glob("parts/*.failures.jsonl")))) == 19
    job.images.joinpath("0019.jpg").unlink()
    job.images.rmdir()
    hidden.rename(job.images)
    stand_in.set_faults()
    state = await annotate(job, stand_in, chunk_size=20)
    assert state.message == "20 images: 20 answered, 0 failed"


async def test_fields_of_an_earlier_annotation_do_not_survive_in_the_new_one(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(1)
    stale = {"annotations_error": True, "flags": ["old"], "caption": "not asked", "text": ["one", "two"], "kept": 1}
    job.write_input([job.rows()[0] | stale])
    await annotate(job, stand_in, caption_column="text")
    row = lines_of(job.output)[0]
    assert "annotations_error" not in row
    assert "flags" not in row
    assert row["caption"] == "one\ntwo"
    assert row["kept"] == 1


async def test_what_only_pythons_json_reads_is_done_and_stays(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    older = b'{"image_path": "0000.jpg", "score": NaN}\n{"image_path": "0001.jpg", "vlm_output": "\\ud83d"}\n'
    torn = b'{"image_path": "0002.jpg", "score": Infinity}'
    job.output.write_bytes(older + torn)
    state = await annotate(job, stand_in)
    assert state.message == "4 images: 1 answered, 3 already answered, 0 failed"
    assert job.output.read_bytes().startswith(older + torn + b"\n")
