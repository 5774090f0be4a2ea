"""Shards from separate runs, merged into one output."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.conftest import ROOT, Job, lines_of
from vllm_annotate.storage.workspace import Workspace

MakeJob = Callable[..., Job]


def merged(job: Job, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [
        "flows.merge_shards",
        "--input",
        job.input,
        "--output",
        job.output,
        "--image-root",
        job.images,
    ]
    return subprocess.run([sys.executable, "-m", *map(str, command), *more], cwd=ROOT, capture_output=True, text=True)


def twin(job: Job) -> Job:
    """Returns a job with the same input and images, and another output."""
    folder = job.folder.with_name("twin")
    shutil.copytree(job.folder, folder)
    return Job(folder, job.names)


@pytest.mark.usefixtures("prefect_api")
def test_merged_shards_equal_the_run_of_the_whole(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(30)
    rows = job.rows()
    rows[4]["image_path"] = "gone.jpg"
    job.input.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:9], rows[2], {"caption": "x"}, *rows[9:]]))
    job.output.write_bytes(b'{"image_path": "0007.jpg",   "by": "an older script"}\n')
    whole = twin(job)
    assert whole.run(stand_in.url).returncode == 1
    stand_in.forget()
    ran = [job.run(stand_in.url, "--shard", f"{number}/3", "--chunk-size", "4") for number in (2, 3, 1)]
    assert sorted(run.returncode for run in ran) == [0, 0, 1], "one of them has the missing image"
    assert len(stand_in.asked()) == 28, "neither the missing one nor what the output had"
    assert len(lines_of(job.output)) == 1, "the output does not change before the merge"
    done = merged(job)
    assert done.returncode == 1, done.stderr
    assert "30 images: 28 answered, 1 already answered, 1 failed (1 missing)" in done.stdout
    assert job.output.read_bytes() == whole.output.read_bytes()
    assert job.failures.read_bytes() == whole.failures.read_bytes().replace(b"/twin/", b"/job/")
    reports = [json.loads((each.folder / "labeled.report.json").read_text()) for each in (job, whole)]
    for same in (
        "failures",
        "skipped_lines",
        "tokens",
        "images_sent",
        "recipe",
        "model",
        "quality",
        "family",
        "endpoints",
    ):
        assert reports[0][same] == reports[1][same], same
    assert set(reports[1]) <= set(reports[0]), "it has all keys of a run's report"
    assert list(reports[0]["shards"]) == ["1-of-3", "2-of-3", "3-of-3"]
    page = (job.folder / "labeled.report.html").read_text()
    assert "0003.jpg" in page
    assert all((job.folder / link).exists() for link in re.findall(r'href="([^"]+)"', page)), (
        "links to the reports of the shards"
    )
    assert page.count("href=") == 3
    assert reports[0]["seconds"] >= reports[0]["annotating_seconds"] >= 0
    assert reports[0]["images_per_second"] <= sum(shard["images_per_second"] for shard in reports[0]["shards"].values())
    again = job.run(stand_in.url)
    assert "0 answered, 29 already answered" in again.stderr, "a run of the whole resumes from there"


@pytest.mark.usefixtures("prefect_api")
def test_an_interrupted_merge_is_repeated_with_none_lost_and_none_twice(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(12)
    for number in (1, 2):
        assert job.run(stand_in.url, "--shard", f"{number}/2").returncode == 0
    shards = job.folder / "labeled.shards"
    shutil.copytree(shards, job.folder / "before")
    assert merged(job).returncode == 0
    assert not list(shards.glob("*.jsonl"))
    complete = job.output.read_bytes()
    shutil.rmtree(shards)
    (job.folder / "before").rename(shards)  # as if killed before it removed the shards' files
    assert merged(job).returncode == 0
    assert job.output.read_bytes() == complete
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


@pytest.mark.usefixtures("prefect_api")
def test_images_of_a_missing_shard_are_open_and_the_next_run_annotates_them(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(20)
    assert job.run(stand_in.url, "--shard", "1/2").returncode == 0
    first = len(stand_in.asked())
    done = merged(job)
    assert done.returncode == 1
    assert f"{first} answered, {20 - first} failed ({20 - first} unasked)" in done.stdout
    assert all("its shard" in row["failure"]["message"] for row in lines_of(job.failures))
    stand_in.forget()
    assert job.run(stand_in.url, "--shard", "2/2").returncode == 0
    assert job.run(stand_in.url, "--shard", "1/2").returncode == 0
    assert len(stand_in.asked()) == 20 - first
    assert merged(job).returncode == 0
    assert sorted(row["image_path"] for row in lines_of(job.output)) == job.names
    assert not job.failures.exists()


@pytest.mark.usefixtures("prefect_api")
def test_shards_of_two_recipes_or_of_a_live_run_are_not_merged(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(8)
    refused = merged(job)
    assert (refused.returncode, "has no shards" in refused.stderr) == (2, True)
    recipe = job.folder / "recipe.yaml"
    for number, temperature in ((1, 0.0), (2, 0.5)):
        recipe.write_text(f"temperature: {temperature}\n")
        assert job.run(stand_in.url, "--shard", f"{number}/2", "--recipe", str(recipe)).returncode == 0
        shards = job.folder / "labeled.shards"
        shards.rename(job.folder / f"machine-{number}")  # neither knows of the other's
    for number in (1, 2):
        shutil.copytree(job.folder / f"machine-{number}", shards, dirs_exist_ok=True)
    refused = merged(job)
    assert refused.returncode == 2
    assert "2-of-2.jsonl was written with another recipe (temperature: 0.5 → 0.0)" in refused.stderr
    assert not job.output.exists()
    with Workspace.at(job.output, "2/2").locked():
        refused = merged(job)
    assert (refused.returncode, "2-of-2.jsonl is being written" in refused.stderr) == (2, True)


@pytest.mark.usefixtures("prefect_api")
def test_a_shard_without_images_finishes_at_once(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(1)
    assert [job.run(stand_in.url, "--shard", f"{number}/2").returncode for number in (1, 2)] == [0, 0]
    assert merged(job).returncode == 0
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


@pytest.mark.usefixtures("prefect_api")
def test_a_refused_shard_leaves_nothing_behind(make_job: MakeJob, stand_in: StandIn, tmp_path: Path) -> None:
    job = make_job(1)
    before = sorted(job.folder.iterdir())
    wrong = job.run(stand_in.url, "--shard", "4/3")
    assert (wrong.returncode, "'4/3' is not a shard" in wrong.stderr) == (2, True)
    wrong = job.run(stand_in.url, "--shard", "1/3", "--model-name", "no-such-model")
    assert wrong.returncode == 2
    assert sorted(job.folder.iterdir()) == before


@pytest.mark.usefixtures("prefect_api")
def test_no_answer_is_lost_to_a_wrong_or_a_shorter_input(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(10)
    assert job.run(stand_in.url, "--shard", "1/1").returncode == 0
    job.write_input([*job.rows()[:3], {"image_path": "new.jpg", "caption": "x"}])
    done = merged(job)
    assert done.returncode == 1, done.stderr
    assert [row["image_path"] for row in lines_of(job.output)] == job.names, "the others follow"
    assert [row["image_path"] for row in lines_of(job.failures)] == ["new.jpg"]
    assert merged(job, "--input", str(job.output)).returncode == 2, "an output cannot be its own input"


@pytest.mark.usefixtures("prefect_api")
def test_answers_of_a_killed_shard_are_merged_too_and_reasons_of_failures_stay(make_job: MakeJob) -> None:
    job = make_job(40)
    (job.images / "0003.jpg").unlink()
    with StandIn.started("--canned", "--prefill-seconds", "0.3") as server:
        killed = job.start(server.url, "--shard", "1/1", "--max-concurrency", "2")
        while len(server.asked()) < 8:
            time.sleep(0.05)
        killed.kill()
        killed.communicate()
        assert merged(job).returncode == 1
        assert len(lines_of(job.output)) >= 6, "answers from its parts"
        assert not list((job.folder / "labeled.shards").glob("**/parts/*.jsonl")), (
            "so that another number of shards can follow"
        )
        server.forget()
        assert job.run(server.url, "--shard", "1/1").returncode == 1
    for _ in range(2):
        assert "1 failed (1 missing)" in merged(job).stdout, "also if there is nothing to merge"
    assert len(lines_of(job.output)) == 39


@pytest.mark.usefixtures("prefect_api")
def test_damaged_reports_and_edited_answers_of_shards_do_not_stop_a_merge(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    for number in (1, 2):
        assert job.run(stand_in.url, "--shard", f"{number}/2").returncode == 0
    shards = job.folder / "labeled.shards"
    (shards / "1-of-2.report.json").write_text('{"images": 5}')
    edited = [
        f'{{"image_path": "by-hand-{number}.jpg", {fields}}}'
        for number, fields in enumerate([
            '"objects": null, "flags": 3', '"score": NaN, "big": 123456789012345678901234567890', '"objects": 1.5',
            '"objects": {"a": 1}', '"objects": [{"name": "x", "bbox": [0.1, 1e400, NaN, 3]}]',
            '"objects": [], "flags": [[]], "parse_stage": {}', '"objects": [], "vlm_output": 3, "width": "x"',
            '"objects": [], "attempts": 1.5, "annotations_error":true', '"deep": ' + "[" * 300 + "]" * 300,
        ])
    ]  # fmt: skip
    nameless = ["not a row", '{"image_path": null, "by": "hand"}']
    with (shards / "2-of-2.jsonl").open("a") as file:
        file.write("\n".join([nameless[0], *edited, nameless[1]]))
    shutil.rmtree(shards / "2-of-2.work")
    done = merged(job)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert job.output.read_text().splitlines()[6:] == [*edited, *nameless], "no line is dropped"
    assert json.loads((job.folder / "labeled.report.json").read_text())["quality"]["parse_stages"] == {
        "failed": 8,
        "json": 7,
    }
    job.input.write_bytes(b"\x1f\x8b broken")
    broken = merged(job, "--input", str(job.input.rename(job.input.with_suffix(".jsonl.gz"))))
    assert (broken.returncode, "Traceback" in broken.stderr) == (2, False)


def test_shards_of_two_recipes_are_refused_before_they_ask_anything(
    make_job: MakeJob, stand_in: StandIn, tmp_path: Path
) -> None:
    job = make_job(6)
    tmp_path.joinpath("zh.yaml").write_text("language: zh\n")
    other = ("--recipe", str(tmp_path / "zh.yaml"))
    assert job.run(stand_in.url, "--shard", "1/2").returncode == 0
    asked = len(stand_in.asked())
    refused = job.run(stand_in.url, "--shard", "2/2", *other)
    assert refused.returncode == 2, refused.stderr
    assert "was written with another recipe (language: 'en' → 'zh')" in refused.stderr
    for more in (("--shard", "1/3"), ()):
        refused = job.run(stand_in.url, *more)
        assert refused.returncode == 2
        assert "has unmerged answers from a run in 2 shards: go on with 2 shards, or merge them first" in refused.stderr
    assert len(stand_in.asked()) == asked
