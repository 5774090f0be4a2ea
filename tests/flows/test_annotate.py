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
from stand_in.process import StandIn
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
        "without_caption": 0, "failed": 0, "annotations_error": 0, "not_selected": 0, "taken_from_pilot": 0,
    }  # fmt: skip
    assert report["tokens"]["completion"] > 0
    assert sum(report["images_sent"].values()) == 25
    assert Counter(row["sent_as"] for row in rows) == Counter(report["images_sent"])
    server = report["servers"][f"{stand_in.url}/v1"]
    assert (server["stand_in"], server["answered"], server["troubles"]) == (True, 25, 0)


async def test_a_corrupt_image_fails_alone_and_the_next_run_retries_it(make_job: MakeJob, stand_in: StandIn) -> None:
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


async def test_an_answer_without_an_annotation_is_saved_and_counted(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    stand_in.set_faults({"kind": "malformed", "match": "0001", "count": None})
    state = await annotate(job, stand_in)
    assert "1 answers without an annotation" in str(state.message)
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
    assert "more than the error budget of 0.1 allows" in failures[-1]["failure"]["message"]
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


async def test_a_chunk_that_lost_its_server_is_retried(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(10)
    stand_in.set_faults({"kind": "crash", "match": "0004"})
    running = asyncio.create_task(annotate(job, stand_in, chunk_retries=1))
    while stand_in.answers():
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)  # past the wait of one second: the chunk fails and waits for its second try
    await asyncio.to_thread(stand_in.start)
    state = await running
    assert state.message == "10 images: 10 answered, 0 failed"


async def test_chunks_smaller_than_the_concurrency_still_fill_it_and_never_pass_it(make_job: MakeJob) -> None:
    job = make_job(60)
    with StandIn.started("--prefill-seconds", "0.3") as slow:
        await annotate(job, slow, chunk_size=5, max_concurrency=12)
        assert slow.most_at_once() == 12


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_boxes_are_correct_for_every_orientation(
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


async def test_a_file_name_with_glob_characters_is_taken_literally(
    make_job: MakeJob, stand_in: StandIn, tmp_path: Path
) -> None:
    job = make_job(3, tmp_path / "exp[1]")
    (tmp_path / "exp1").mkdir()
    (tmp_path / "exp1" / "input.jsonl").write_text('{"image_path": "wrong", "caption": ""}\n')
    state = await annotate(job, stand_in)
    assert state.message == "3 images: 3 answered, 0 failed"


async def test_an_answer_without_an_annotation_is_re_asked_hotter_and_the_better_one_wins(
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


async def test_an_answer_that_stays_truncated_and_has_no_objects_is_a_failure(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(2)
    stand_in.set_faults({"kind": "length", "match": "0001", "count": None})
    await annotate(job, stand_in)
    failure = lines_of(job.failures)[0]["failure"]
    assert (failure["kind"], failure["attempts"]) == ("truncated", 3)
    assert stand_in.asked()["caption of 0001.jpg"] == 3


async def test_complete_objects_of_a_truncated_answer_are_saved_and_flagged(
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


async def test_a_looping_answer_is_re_asked(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(1)
    marching = [{"bbox_2d": [40 * n, 10, 40 * n + 20, 40], "label": "bird"} for n in range(7)]
    stand_in.set_faults({"kind": "text", "text": json.dumps({"rationale": "", "objects": marching})})
    await annotate(job, stand_in)
    assert stand_in.asked()["caption of 0000.jpg"] == 2
    assert len(lines_of(job.output)[0]["objects"]) == 1


async def test_the_report_has_the_quality_of_the_answers(make_job: MakeJob, stand_in: StandIn) -> None:
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
