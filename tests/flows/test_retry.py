"""What a retry of failures requests, and what it does not touch."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks import AnnotationRecipe, VLLMServer
from flows.retry import retry_failures
from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.flows.test_annotate import annotate
from tests.support.stores import Store
from vllm_annotate.errors import ImageFailure
from vllm_annotate.results.retry import chosen_failures

pytestmark = pytest.mark.usefixtures("prefect_api")
MakeJob = Callable[..., Job]


async def retry(job: Job, server: StandIn, **parameters: Any) -> Any:
    block = VLLMServer(endpoints=[f"{server.url}/v1"])
    return await retry_failures(job.output, job.images, server=block, return_state=True, **parameters)


def kinds(job: Job) -> Counter[str]:
    return Counter(row["failure"]["kind"] for row in lines_of(job.failures))


@pytest.fixture
async def failed(make_job: MakeJob, stand_in: StandIn) -> Job:
    """A job of 20 images: 3 rejected, 2 unreadable, 1 missing, with all causes fixed."""
    job = make_job(20)
    good = (job.images / job.names[0]).read_bytes()
    for name in job.names[4:6]:
        (job.images / name).write_bytes(b"no image")
    (job.images / job.names[6]).unlink()
    stand_in.set_faults({"kind": "400", "count": None, "match": r"caption of 000[123]"})
    await annotate(job, stand_in)
    assert kinds(job) == {"rejected": 3, "unreadable": 2, "missing": 1}
    stand_in.set_faults()
    for name in job.names[4:7]:
        (job.images / name).write_bytes(good)
    stand_in.forget()
    return job


async def test_a_retry_takes_columns_server_and_recipe_from_the_run_that_failed(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(3)
    job.write_input([{"file": row["image_path"], "text": row["caption"], "caption": "other"} for row in job.rows()])
    stand_in.set_faults({"kind": "400", "count": None, "match": "0001"})
    recipe = AnnotationRecipe(max_objects=7)
    await annotate(job, stand_in, image_column="file", caption_column="text", recipe=recipe)
    assert kinds(job) == {"rejected": 1}
    stand_in.set_faults()
    stand_in.forget()
    state: Any = await retry_failures(job.output, job.images, return_state=True)
    assert state.message == "1 images: 1 answered, 0 failed"
    assert list(stand_in.asked()) == ["caption of 0001.jpg"]
    row = lines_of(job.output)[-1]
    assert (row["image_path"], row["file"], row["text"]) == ("0001.jpg", "0001.jpg", "caption of 0001.jpg")


async def test_only_failures_of_the_chosen_kinds_are_retried_and_the_others_stay(
    failed: Job, stand_in: StandIn
) -> None:
    others = [line for line in failed.failures.read_bytes().splitlines() if b'"unreadable"' not in line]
    state = await retry(failed, stand_in, kinds=["unreadable"])
    assert state.is_completed()
    assert state.message == "2 images: 2 answered, 0 failed, 4 earlier failures not asked again"
    assert sorted(stand_in.asked()) == [f"caption of {name}" for name in failed.names[4:6]]
    assert failed.failures.read_bytes().splitlines() == others
    assert len(lines_of(failed.output)) == 16
    assert not list(failed.work.glob("set-aside*"))


async def test_without_kinds_all_are_retried_and_the_failures_file_is_removed(failed: Job, stand_in: StandIn) -> None:
    state = await retry(failed, stand_in)
    assert state.message == "6 images: 6 answered, 0 failed"
    assert not failed.failures.exists()
    rows = {row["image_path"]: row for row in lines_of(failed.output)}
    assert sorted(rows) == failed.names
    assert not any("failure" in row for row in rows.values())
    assert rows[failed.names[1]]["caption"] == f"caption of {failed.names[1]}"


async def test_a_refused_retry_loses_nothing_and_a_full_run_after_it_requests_all(
    failed: Job, stand_in: StandIn, nobody: str
) -> None:
    before = failed.failures.read_bytes()
    block = VLLMServer(endpoints=[f"{nobody}/v1"])
    state: Any = await retry_failures(failed.output, failed.images, kinds=["missing"], server=block, return_state=True)
    assert state.is_failed()
    assert failed.failures.read_bytes() == before
    await annotate(failed, stand_in)
    assert len(lines_of(failed.output)) == 20
    assert not failed.failures.exists()


async def test_what_fails_again_stays_in_the_file_once(failed: Job, stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "400", "count": None})
    state = await retry(failed, stand_in, kinds=["rejected", "missing"])
    assert state.is_completed()
    assert kinds(failed) == {"rejected": 4, "unreadable": 2}
    assert len({row["image_path"] for row in lines_of(failed.failures)}) == 6


async def test_nothing_to_retry_is_not_a_failure(make_job: MakeJob, stand_in: StandIn, failed: Job) -> None:
    state = await retry(failed, stand_in, kinds=["timeout"])
    assert state.is_completed()
    assert "nothing to retry: 3 rejected, 2 unreadable, 1 missing failures" in state.message
    assert stand_in.asked() == {}


def test_two_retries_of_other_kinds_at_once_lose_no_failure(tmp_path: Path) -> None:
    store = Store(tmp_path, 6)
    store.answer(0, 5, failing=(1, 2))
    store.merge({1: ImageFailure("timeout", "late"), 2: ImageFailure("timeout", "late")})
    assert store.failures() == {"1": "rejected", "2": "rejected", "3": "timeout", "4": "timeout"}
    output = store.workspace.output
    chosen_failures(output, ["rejected"])  # while its server takes minutes to start
    first = store.workspace.retried.read_bytes()
    _, chosen, others = chosen_failures(output, ["timeout"])
    assert (dict(chosen), dict(others)) == ({"timeout": 2}, {"rejected": 2})
    for retried in (None, first):
        if retried is not None:
            store.workspace.retried.write_bytes(retried)
        store.input = store.workspace.retried
        store.plan = store.replan()
        store.answer(3, 1)
        store.merge()
    assert store.output() == ["0", "5", "3", "1"]
    assert sorted(store.failures()) == ["2", "4"]
