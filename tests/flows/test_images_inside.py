"""Inputs with the images inside, from the run to the commands after it."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
from datasets.table import embed_table_storage

from flows.annotate import annotate_images
from flows.export_report import export_report
from flows.retry import retry_failures
from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.support.corpus import command
from tests.support.s3 import Bucket
from tests.support.tars import write_tar, write_webdataset

MakeJob = Callable[..., Job]


def arguments(job: Job, given: Path | str, server: StandIn, *more: str) -> list[str]:
    """Those of a run without an image root."""
    files = ["--input", str(given), "--output", str(job.output), "--api-base", f"{server.url}/v1"]
    return [*files, "--without-prefect", *more]


def written_parquet(path: Path, job: Job) -> list[str]:
    """Writes the job's rows and images as push_to_hub does; returns their image paths."""
    images = [str(job.images / name) for name in job.names]
    captions = [row["caption"] for row in job.rows()]
    data = datasets.Dataset.from_dict({"image": images, "caption": captions}).cast_column("image", datasets.Image())
    data.with_format("arrow").map(embed_table_storage, batched=True).with_format(None).to_parquet(str(path))
    return job.names


WRITERS = {"00000.tar": write_webdataset, "train.parquet": written_parquet}


@pytest.mark.parametrize("name", WRITERS)
def test_no_image_root_is_needed(make_job: MakeJob, stand_in: StandIn, name: str) -> None:
    job = make_job(24)
    paths = WRITERS[name](job.folder / name, job)
    files = job.run(stand_in.url, "--without-prefect")
    assert files.returncode == 0, files.stderr
    expected = lines_of(job.output)
    job.output.unlink()
    stand_in.forget()
    dry = job.run_with(arguments(job, job.folder / name, stand_in, "--dry-run"))
    assert "24 of 24 images are open" in dry.stdout
    done = job.run_with(arguments(job, job.folder / name, stand_in))
    assert done.returncode == 0, done.stderr
    rows = lines_of(job.output)
    assert [row["image_path"] for row in rows] == paths
    for ours, of_files in zip(rows, expected, strict=True):
        assert {name: ours[name] for name in of_files if name != "image_path"} == {
            name: value for name, value in of_files.items() if name != "image_path"
        }, "the same caption, the same pixels"
    again = job.run_with(arguments(job, job.folder / name, stand_in))
    assert again.returncode == 0, again.stderr
    assert "24 already answered" in again.stderr
    assert max(stand_in.asked().values()) == 1


@pytest.mark.fuzz
@pytest.mark.parametrize("name", WRITERS)
def test_a_run_that_is_killed_again_and_again_loses_and_repeats_nothing(
    make_job: MakeJob, name: str, fuzzing: bool
) -> None:
    job, kills = make_job(150, distinct=10), 6 if fuzzing else 3
    paths = WRITERS[name](job.folder / name, job)
    with StandIn.started("--canned", "--prefill-seconds", "0.02") as server:
        given = arguments(job, job.folder / name, server, "--max-concurrency", "4", "--chunk-size", "20")
        for kill in range(1, kills + 1):
            run = job.start_with(given)
            while sum(server.asked().values()) < 120 // kills * kill and run.poll() is None:
                time.sleep(0.002)
            run.kill()
            run.communicate()
        done = job.run_with(given)
        assert done.returncode == 0, done.stderr
        assert sum(server.asked().values()) <= 150 + kills * 4
    assert [row["image_path"] for row in lines_of(job.output)] == paths
    assert not job.failures.exists()


def test_a_broken_tar_costs_what_cannot_be_read_and_is_told(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    path = job.folder / "00000.tar"
    paths = write_webdataset(path, job)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"0004.jpg") + 1024])
    done = job.run_with(arguments(job, path, stand_in))
    assert done.returncode == 1, done.stderr
    assert [row["image_path"] for row in lines_of(job.output)] == paths[:4]
    failures = {row["image_path"]: row["failure"]["message"] for row in lines_of(job.failures)}
    assert list(failures) == ["00000.tar/0004", "00000.tar"] or list(failures) == ["00000.tar/0004.jpg", "00000.tar"]
    assert "the tar is truncated or corrupt after 5 rows" in failures["00000.tar"]
    path.write_bytes(whole)
    done = job.run_with(arguments(job, path, stand_in))
    assert done.returncode == 0, done.stderr
    assert [row["image_path"] for row in lines_of(job.output)] == paths
    assert max(stand_in.asked().values()) == 1


@pytest.mark.parametrize("name", WRITERS)
def test_the_commands_after_a_run_find_the_images(make_job: MakeJob, stand_in: StandIn, name: str) -> None:
    job = make_job(8)
    paths = WRITERS[name](job.folder / name, job)
    stand_in.set_faults({"kind": "400", "count": None, "match": "0003"})
    assert job.run_with(arguments(job, job.folder / name, stand_in)).returncode == 1
    assert [row["image_path"] for row in lines_of(job.failures)] == [paths[3]]
    stand_in.set_faults()
    retried = command("retry", "--output", job.output, "--without-prefect")
    assert retried.returncode == 0, retried.stderr
    assert sorted(row["image_path"] for row in lines_of(job.output)) == paths
    tasks = command("review", "--output", job.output, "--to", job.folder / "tasks.json", "--most", 2)
    assert "The images are inside the input: docs/inputs.md says how to unpack them" in tasks.stdout
    page = job.folder / "labeled.report.html"
    page.unlink()
    report = command("report", "--output", job.output)
    assert report.returncode == 0, report.stderr
    assert page.read_text().count("data:image/jpeg;base64,") >= 8
    truth = job.folder / "truth.jsonl"
    rows = [{"image_path": path, "objects": [{"name": "red circle", "bbox": [1, 2, 300, 400]}]} for path in paths]
    truth.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated = command("evaluate", "--output", job.output, "--truth", truth)
    assert evaluated.returncode == 0, evaluated.stderr
    assert job.folder.joinpath("labeled.evaluation.html").read_text().count("data:image/jpeg;base64,") >= 4


@pytest.mark.usefixtures("prefect_api")
async def test_the_flows_need_no_image_root_either(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    given = job.folder / "00000.tar"
    write_webdataset(given, job)
    server: Any = {"endpoints": [f"{stand_in.url}/v1"]}
    stand_in.set_faults({"kind": "400", "count": None, "match": "0003"})
    state = await annotate_images(input=given, output=job.output, server=server, return_state=True)
    assert state.message == "6 images: 5 answered, 1 failed (1 rejected)"
    stand_in.set_faults()
    state = await retry_failures(output=job.output, return_state=True)
    assert state.message == "1 images: 1 answered, 0 failed"
    state = await export_report(output=job.output, return_state=True)
    assert state.is_completed(), state.message


def test_an_image_root_beside_images_inside_is_not_used_and_that_is_said(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(2)
    write_webdataset(job.folder / "00000.tar", job)
    done = job.run_with(arguments(job, job.folder / "00000.tar", stand_in, "--image-root", str(job.images)))
    assert done.returncode == 0, done.stderr
    assert f"image root {job.images} is not used: the images are inside the input" in done.stderr


def test_without_images_inside_an_image_root_is_asked_for(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(2)
    done = job.run_with(arguments(job, job.input, stand_in))
    assert done.returncode == 2
    assert f"no image is inside {job.input}: set image_root to the folder with the images" in done.stderr
    assert not job.work.exists()


def test_a_tar_without_images_is_refused(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(1)
    write_tar(job.folder / "x.tar", {"readme.md": b""})
    done = job.run_with(arguments(job, job.folder / "x.tar", stand_in))
    assert done.returncode == 2
    assert f"input '{job.folder}/x.tar' has no images" in done.stderr


@pytest.mark.deployed
@pytest.mark.parametrize("name", WRITERS)
def test_a_bucket_has_them_too(make_job: MakeJob, bucket: Bucket, stand_in: StandIn, name: str) -> None:
    job = make_job(8)
    paths = WRITERS[name](job.folder / name, job)
    bucket.fs.put_file(str(job.folder / name), f"{bucket.url}/{name}")
    done = job.run_with(arguments(job, f"{bucket.url}/{name}", stand_in))
    assert done.returncode == 0, done.stderr
    assert [row["image_path"] for row in lines_of(job.output)] == paths
    again = job.run_with(arguments(job, f"{bucket.url}/{name}", stand_in))
    assert "8 already answered" in again.stderr


def test_row_numbers_of_another_version_of_the_file_are_refused(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    path = job.folder / "t.parquet"
    images = [job.images.joinpath(name).read_bytes() for name in job.names]
    pl.DataFrame({"image": images, "caption": job.names}).write_parquet(path)
    stand_in.set_faults({"kind": "400", "count": None, "match": "000[23]"})
    assert job.run_with(arguments(job, path, stand_in)).returncode == 1
    stand_in.set_faults({"kind": "400", "count": None, "match": "0003"})
    os.utime(path, (1, 1))  # touched, copied or downloaded again: its content is the same
    assert "1 answered, 2 already answered, 1 failed" in job.run_with(arguments(job, path, stand_in)).stderr
    stand_in.set_faults()
    pl.DataFrame({"image": images[::-1], "caption": job.names[::-1]}).write_parquet(path)
    for again in (
        job.run_with(arguments(job, path, stand_in)), command("retry", "--output", job.output, "--without-prefect"),
    ):  # fmt: skip
        assert again.returncode == 2
        assert f"{path} has changed, and its rows are known by their numbers" in again.stderr
    assert len(lines_of(job.output)) == 3


def test_a_plan_is_not_resumed_with_other_columns(make_job: MakeJob) -> None:
    job = make_job(40, distinct=5)
    write_webdataset(job.folder / "00000.tar", job)
    with StandIn.started("--canned", "--prefill-seconds", "0.05") as server:
        given = arguments(job, job.folder / "00000.tar", server, "--max-concurrency", "2")
        run = job.start_with([*given, "--caption-column", "url"])
        while sum(server.asked().values()) < 10:
            pass
        run.kill()
        run.communicate()
        server.forget()
        done = job.run_with(given)
        assert done.returncode == 0, done.stderr
        assert set(server.asked()) <= {row["caption"] for row in job.rows()}
    assert len(lines_of(job.output)) == 40


def test_an_image_root_that_was_not_used_is_not_remembered(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    write_webdataset(job.folder / "00000.tar", job)
    stand_in.set_faults({"kind": "400", "count": None, "match": "0003"})
    given = arguments(job, job.folder / "00000.tar", stand_in, "--image-root", str(job.images))
    assert job.run_with(given).returncode == 1
    stand_in.set_faults()
    assert command("retry", "--output", job.output, "--without-prefect").returncode == 0
    assert len(lines_of(job.output)) == 4


def test_samples_without_a_caption_are_retried_too(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(2)
    one, two = (job.images.joinpath(name).read_bytes() for name in job.names)
    write_tar(job.folder / "x.tar", {"1.jpg": one, "1.txt": b"one", "2.jpg": two, "3.txt": b"three"})
    assert job.run_with(arguments(job, job.folder / "x.tar", stand_in)).returncode == 1
    assert [row["caption"] for row in lines_of(job.output)] == ["one", ""]
    again = command("retry", "--output", job.output, "--without-prefect")
    assert again.returncode == 1
    assert "1 failed (1 unreadable)" in again.stderr


def test_images_that_a_lost_shard_left_keep_their_captions(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(8)
    write_webdataset(job.folder / "00000.tar", job)
    whole = job.folder / "whole.jsonl"
    given = arguments(job, job.folder / "00000.tar", stand_in)
    assert job.run_with([*given, "--shard", "1/2"]).returncode == 0
    assert command("merge-shards", "--output", job.output).returncode == 1
    captions = {row["caption"] for row in job.rows()}
    assert {row["caption"] for path in (job.output, job.failures) for row in lines_of(path)} == captions
    assert command("retry", "--output", job.output, "--without-prefect").returncode == 0
    assert job.run_with([*given, "--output", str(whole)]).returncode == 0
    parts = ({row["image_path"]: row | {"made_by": None} for row in lines_of(path)} for path in (job.output, whole))
    merged, expected = ({path: (row["caption"], row.keys()) for path, row in rows.items()} for rows in parts)
    assert merged == expected


def test_of_several_files_one_without_images_is_finished(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    folder, output = job.folder / "in", job.folder / "labeled"
    folder.mkdir()
    write_webdataset(folder / "0.tar", job)
    write_tar(folder / "1.tar", {})
    given = ["--input", str(folder), "--output", str(output), "--api-base", f"{stand_in.url}/v1", "--without-prefect"]
    done = job.run_with(given)
    assert done.returncode == 0, done.stderr
    assert f"input '{folder}/1.tar' has no images" in done.stderr
    assert "4 images: 4 answered, 0 failed; 2 of 2 input files are finished" in done.stderr
    assert [path.name for path in output.iterdir()] == ["0.jsonl"]
    again = job.run_with(given)
    assert "2 input files: 2 are finished, 0 to do" in again.stderr
    write_webdataset(folder / "1.tar", job)
    done = job.run_with(given)
    assert "8 images: 4 answered, 4 already answered" in done.stderr, done.stderr
    write_tar(folder / "2.tar", {})
    folder.joinpath("2.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    assert "2.tar' is a compressed tar: unpack it, as with gunzip" in job.run_with(given).stderr


def test_an_input_that_has_moved_is_found_where_the_image_root_says(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    folder, output = job.folder / "in", job.folder / "labeled"
    for name in "ab":
        folder.joinpath(name).mkdir(parents=True)
        write_webdataset(folder / name / f"{name}.tar", job)
    given = ["--input", str(folder), "--output", str(output), "--api-base", f"{stand_in.url}/v1", "--without-prefect"]
    assert job.run_with(given).returncode == 0
    folder.rename(job.folder / "moved")
    page = job.folder / "labeled.report.html"
    page.unlink()
    report = command("report", "--output", output, "--image-root", job.folder / "moved")
    assert report.returncode == 0, report.stderr
    assert page.read_text().count("data:image/jpeg;base64,") == 8
    audit = command("audit", "--output", output, "--sample", 2, "--image-root", job.folder / "moved")
    assert audit.returncode == 0, audit.stderr
