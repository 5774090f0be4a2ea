"""The flow, in this process, against a real Prefect server and a stand-in over HTTP."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from blocks import AnnotationRecipe, VLLMServer
from demo.scenes import caption, draw_scene, save_turned, truth
from demo.scoring import score
from flows.annotate import annotate_images
from tests.client import StandIn
from tests.conftest import Job, ask_prefect, lines_of

pytestmark = pytest.mark.usefixtures("prefect_api")
MakeJob = Callable[..., Job]


async def annotate(job: Job, server: StandIn | str, **parameters: Any) -> State[Any]:
    url = server if isinstance(server, str) else server.url
    return await annotate_with(job, VLLMServer(endpoints=[f"{url}/v1"]), **parameters)


async def annotate_with(job: Job, server: VLLMServer, **parameters: Any) -> State[Any]:
    defaults: dict[str, Any] = {"chunk_size": 10, "chunk_retries": 0, "server_wait_seconds": 1}
    state: State[Any] = await annotate_images(
        input=job.input,
        image_root=job.images,
        output=job.output,
        server=server,
        return_state=True,
        **(defaults | parameters),
    )
    return state


def of_run(state: State[Any]) -> dict[str, Any]:
    """Filters a query to what belongs to the flow run of this state."""
    return {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}


async def chunk_states(api: str, state: State[Any]) -> dict[int, str]:
    """Chunk number → name of its task run's final state, as the Prefect server has them."""
    runs: list[dict[str, Any]] = []
    for _ in range(100):  # states travel as events
        runs = ask_prefect(api, "/task_runs/filter", **of_run(state))
        if any(run["name"] == "report" and run["state_name"] == "Completed" for run in runs):
            break
        await asyncio.sleep(0.1)
    return {int(run["name"].split()[1]): run["state_name"] for run in runs if run["name"].startswith("chunk")}


async def test_every_image_is_annotated_and_the_run_says_so(
    make_job: MakeJob, stand_in: StandIn, prefect_api: str
) -> None:
    job = make_job(25)
    state = await annotate(job, stand_in)
    assert state.is_completed()
    assert state.message == "25 images: 25 answered, 0 failed"
    rows = lines_of(job.output)
    assert [row["image_path"] for row in rows] == job.names
    assert all(len(row["objects"]) == 1 and (row["width"], row["height"]) == (196, 168) for row in rows)
    assert not job.failures.exists()
    assert await chunk_states(prefect_api, state) == {1: "Completed", 2: "Completed", 3: "Completed"}
    report = json.loads(job.output.with_name("labeled.report.json").read_text())
    assert report["images"] == {
        "input": 25, "distinct": 25, "already_done": 0, "answered": 25, "answered_before_an_interruption": 0,
        "without_caption": 0, "failed": 0, "annotations_error": 0,
    }  # fmt: skip
    assert report["tokens"]["completion"] > 0
    server = report["servers"][f"{stand_in.url}/v1"]
    assert (server["stand_in"], server["answered"], server["troubles"]) == (True, 25, 0)


async def test_a_second_run_asks_nothing(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(25)
    await annotate(job, stand_in)
    before = job.output.read_bytes()
    stand_in.forget()
    state = await annotate(job, stand_in)
    assert state.message == "25 images: 0 answered, 25 had answers before, 0 failed"
    assert stand_in.asked() == {}
    assert job.output.read_bytes() == before


async def test_only_new_image_paths_are_asked_after_any_edit_of_the_input(make_job: MakeJob, stand_in: StandIn) -> None:
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


async def test_an_output_of_the_older_script_is_resumed_from(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    older = b'{"image_path": "0003.jpg", "caption": "c", "vlm_output": "t",  "annotations": {}, "objects": []}\n'
    job.output.write_bytes(older + b'{"image_path": "0001.jpg", "capt')
    state = await annotate(job, stand_in)
    assert state.message == "6 images: 5 answered, 1 had answers before, 0 failed"
    assert job.output.read_bytes().startswith(older)
    assert [row["image_path"][3] for row in lines_of(job.output)] == list("301245")


async def test_a_broken_image_costs_that_image_and_is_tried_again_by_the_next_run(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(8)
    good = (job.images / "0002.jpg").read_bytes()
    (job.images / "0002.jpg").write_bytes(good[:300])
    (job.images / "0005.jpg").unlink()
    stand_in.set_faults({"kind": "400", "count": None, "match": "0006"})
    state = await annotate(job, stand_in)
    assert state.is_completed()
    assert "5 answered, 3 failed (1 unreadable, 1 missing, 1 rejected)" in str(state.message)
    kinds = {row["image_path"]: row["failure"]["kind"] for row in lines_of(job.failures)}
    assert kinds == {"0002.jpg": "unreadable", "0005.jpg": "missing", "0006.jpg": "rejected"}
    (job.images / "0002.jpg").write_bytes(good)
    stand_in.set_faults()
    stand_in.forget()
    await annotate(job, stand_in)
    assert sorted(stand_in.asked()) == ["caption of 0002.jpg", "caption of 0006.jpg"]
    assert [row["image_path"] for row in lines_of(job.failures)] == ["0005.jpg"]


async def test_an_answer_that_holds_no_annotation_is_kept_and_counted(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    stand_in.set_faults({"kind": "malformed", "match": "0001", "count": None})
    state = await annotate(job, stand_in)
    assert "1 answers hold no annotation" in str(state.message)
    row = lines_of(job.output)[1]
    assert row["annotations_error"] is True
    assert row["objects"] == []
    assert row["vlm_output"] == "I am sorry, I cannot see any image here."


async def test_a_server_that_goes_away_fails_the_run_but_keeps_what_it_answered(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(40)
    stand_in.set_faults({"kind": "crash", "match": "0035"})
    state = await annotate(job, stand_in, max_concurrency=4, chunk_size=40)
    assert state.is_failed()
    assert "failed chunks: " in str(state.message)
    answered = [row["image_path"] for row in lines_of(job.output)]
    failed = lines_of(job.failures)
    assert len(answered) >= 5
    assert sorted(answered + [row["image_path"] for row in failed]) == job.names
    assert {row["failure"]["kind"] for row in failed} == {"server"}
    assert "no answer from" in failed[0]["failure"]["message"]


async def test_failed_chunks_run_again_in_a_new_run_and_completed_ones_come_back_cached(
    make_job: MakeJob, stand_in: StandIn, prefect_api: str
) -> None:
    job = make_job(40)
    stand_in.set_faults({"kind": "401", "count": None, "match": "001[5-9]"})
    state = await annotate(job, stand_in, max_concurrency=1)
    assert state.is_failed()
    answered = {row["image_path"] for row in lines_of(job.output)}
    stand_in.set_faults()
    stand_in.forget()
    state = await annotate(job, stand_in)
    assert state.is_completed()
    assert {text.removeprefix("caption of ") for text in stand_in.asked()} == set(job.names) - answered
    assert await chunk_states(prefect_api, state) == {1: "Cached", 2: "Completed", 3: "Cached", 4: "Cached"}
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names


async def test_a_cached_chunk_whose_rows_are_gone_is_asked_again(
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


async def test_a_chunk_over_its_error_budget_stops_early_and_is_named(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(20)
    gone = [{"image_path": f"gone-{number}.jpg", "caption": ""} for number in range(400)]
    job.write_input(gone + job.rows())
    state = await annotate(job, stand_in, chunk_size=400, error_budget=0.1)
    assert state.is_failed()
    assert "failed chunks: chunk 1 of 2" in str(state.message)
    failures = lines_of(job.failures)
    kinds = Counter(row["failure"]["kind"] for row in failures)
    assert set(kinds) == {"missing", "unasked"}
    assert kinds.total() == 400
    assert 40 < kinds["missing"] < 150
    assert "more than the error budget 0.1 allows" in failures[-1]["failure"]["message"]
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


async def test_a_chunk_that_lost_its_server_is_tried_again(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(10)
    stand_in.set_faults({"kind": "crash", "match": "0004"})
    running = asyncio.create_task(annotate(job, stand_in, chunk_retries=1))
    while stand_in.answers():
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)  # past the wait of one second: the chunk fails and waits for its second try
    await asyncio.to_thread(stand_in.start)
    state = await running
    assert state.message == "10 images: 10 answered, 0 failed"


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


async def test_chunks_smaller_than_the_concurrency_still_fill_it_and_never_pass_it(make_job: MakeJob) -> None:
    job = make_job(60)
    with StandIn.started("--prefill-seconds", "0.3") as slow:
        await annotate(job, slow, chunk_size=5, max_concurrency=12)
        assert slow.most_at_once() == 12


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_boxes_are_true_for_every_orientation(
    tmp_path: Path, stand_in: StandIn, orientation: int, make_job: MakeJob
) -> None:
    job = make_job(0)
    rng = random.Random(orientation)
    rows, truths = [], []
    for number in range(6):
        scene = draw_scene(rng, rng.randint(300, 1400), rng.randint(300, 1400), 3)
        save_turned(scene.image, job.images / f"{number}.jpg", orientation)
        rows.append({"image_path": f"{number}.jpg", "caption": caption(scene, chinese=False)})
        truths.append(truth(scene))
    job.write_input(rows)
    await annotate(job, stand_in)
    total = score([(true, row["objects"]) for true, row in zip(truths, lines_of(job.output), strict=True)])
    assert total.objects == 18
    assert total.mean_iou >= 0.95


async def test_the_chinese_recipe_gets_chinese_answers(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(2)
    await annotate(job, stand_in, recipe=AnnotationRecipe(language="zh"))
    assert "色" in lines_of(job.output)[0]["objects"][0]["name"]


async def test_a_key_is_in_no_file_of_the_run_and_not_on_the_prefect_server(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, prefect_api: str
) -> None:
    job = make_job(3)
    monkeypatch.setenv("VLLM_API_KEY", "sesame-7391")
    with StandIn.started("--api-key", "sesame-7391") as server:
        state = await annotate(job, server)
        assert state.is_completed()
        direct: State[Any] = await annotate_images(
            input=job.input, image_root=job.images, output=job.folder / "second.jsonl",
            server=VLLMServer(endpoints=[f"{server.url}/v1"], api_key="sesame-7391"), return_state=True,
        )  # fmt: skip
        assert direct.is_completed()
    for path in job.folder.rglob("*"):
        assert path.is_dir() or b"sesame-7391" not in path.read_bytes(), path
    for run in (state, direct):
        assert "sesame-7391" not in json.dumps(ask_prefect(prefect_api, "/flow_runs/filter", **of_run(run)))
    assert "sesame-7391" not in json.dumps(ask_prefect(prefect_api, "/logs/filter", limit=200, sort="TIMESTAMP_DESC"))


async def test_an_output_deleted_during_an_unfinished_job_is_made_again_in_full(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(40)
    rows = job.rows()
    job.write_input(rows[:20])
    await annotate(job, stand_in)
    job.write_input(rows)
    stand_in.set_faults({"kind": "401", "count": None, "match": "003"})
    assert (await annotate(job, stand_in)).is_failed()
    job.output.unlink()
    stand_in.set_faults()
    state = await annotate(job, stand_in)
    assert state.message == "40 images: 40 answered, 0 failed"
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names


async def test_files_that_were_missing_when_a_run_was_interrupted_are_looked_for_again(
    make_job: MakeJob, stand_in: StandIn
) -> None:
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


async def test_a_file_name_with_glob_characters_is_that_file(
    make_job: MakeJob, stand_in: StandIn, tmp_path: Path
) -> None:
    job = make_job(3, tmp_path / "exp[1]")
    (tmp_path / "exp1").mkdir()
    (tmp_path / "exp1" / "input.jsonl").write_text('{"image_path": "wrong", "caption": ""}\n')
    state = await annotate(job, stand_in)
    assert state.message == "3 images: 3 answered, 0 failed"


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
    assert state.message == "4 images: 1 answered, 3 had answers before, 0 failed"
    assert job.output.read_bytes().startswith(older + torn + b"\n")


async def test_an_answer_without_an_annotation_is_asked_again_hotter_and_the_better_one_is_kept(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(2)
    stand_in.set_faults({"kind": "malformed", "match": "0001"})
    state = await annotate(job, stand_in)
    assert state.message == "2 images: 2 answered, 0 failed"
    row = lines_of(job.output)[1]
    assert len(row["objects"]) == 1
    assert row["attempts"] == 2
    assert "attempts" not in lines_of(job.output)[0]
    assert stand_in.temperatures("caption of 0001.jpg") == [0.0, 0.3]


async def test_a_truncated_answer_that_never_gets_whole_is_a_failure_when_it_holds_nothing(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(2)
    stand_in.set_faults({"kind": "length", "match": "0001", "count": None})
    await annotate(job, stand_in)
    failure = lines_of(job.failures)[0]["failure"]
    assert (failure["kind"], failure["attempts"]) == ("truncated", 3)
    assert stand_in.asked()["caption of 0001.jpg"] == 3


async def test_of_a_truncated_answer_the_whole_objects_are_kept_and_flagged(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(1)
    objects = [{"bbox_2d": [n, n, n + 90, n + 90], "label": f"thing {n}"} for n in (0, 50, 100, 200)]
    text = json.dumps({"rationale": "r", "objects": objects})[:-30]
    stand_in.set_faults({"kind": "text", "text": text, "finish_reason": "length", "count": None})
    await annotate(job, stand_in)
    row = lines_of(job.output)[0]
    assert [item["name"] for item in row["objects"]] == ["thing 0", "thing 50", "thing 100"]
    assert row["flags"] == ["truncated"]
    assert row["parse_stage"] == "repaired"
    assert row["vlm_output"] == text


async def test_a_looping_answer_is_asked_again(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(1)
    marching = [{"bbox_2d": [40 * n, 10, 40 * n + 20, 40], "label": "bird"} for n in range(7)]
    stand_in.set_faults({"kind": "text", "text": json.dumps({"rationale": "", "objects": marching})})
    await annotate(job, stand_in)
    assert stand_in.asked()["caption of 0000.jpg"] == 2
    assert len(lines_of(job.output)[0]["objects"]) == 1


async def test_the_report_tells_what_the_answers_are_like(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    swapped = '```{"objects": [{"bbox_2d": [500, 90, 200, 300], "label": "a <script> | cat"}]}'
    stand_in.set_faults({"kind": "text", "text": swapped, "match": "0002"})
    state = await annotate(job, stand_in)
    quality = json.loads(job.output.with_name("labeled.report.json").read_text())["quality"]
    assert quality["answers"] == quality["objects"] == 6
    assert quality["parse_stages"] == {"json": 5, "repaired": 1}
    assert quality["flags"] == {"beyond_edge": 1, "swapped": 1} or quality["flags"] == {"swapped": 1}
    assert quality["names"]["a <script> | cat"] == 1
    assert sum(quality["areas"].values()) == 6
    assert state.is_completed()
