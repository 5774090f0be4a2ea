"""Several Parquet files with the images inside."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from stand_in.process import StandIn
from tests.conftest import Job, lines_of
from tests.support.corpus import command
from tests.support.s3 import Bucket
from vllm_annotate.storage.workspace import Workspace

MakeJob = Callable[..., Job]


def written_folder(folder: Path, job: Job, own_paths: bool) -> None:
    """Writes the job's images into two Parquet files, whose own paths are the same if they have any."""
    folder.mkdir()
    for number, names in enumerate((job.names[::2], job.names[1::2])):
        own = [f"{place}.jpg" if own_paths else None for place in range(len(names))]
        images = [{"bytes": (job.images / n).read_bytes(), "path": path} for n, path in zip(names, own, strict=True)]
        pl.DataFrame({"image": images, "caption": names}).write_parquet(folder / f"{number}.parquet")


def test_equal_own_paths_in_several_files_are_different_images(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    written_folder(job.folder / "in", job, own_paths=True)
    output = job.folder / "labeled"
    given = ["--input", str(job.folder / "in"), "--output", str(output), "--api-base", f"{stand_in.url}/v1"]
    done = job.run_with([*given, "--without-prefect"])
    assert done.returncode == 0, done.stderr
    rows = [row for path in sorted(output.iterdir()) for row in lines_of(path)]
    assert [row["image_path"] for row in rows] == [f"{file}.parquet/{place}.jpg" for file in "01" for place in range(3)]
    assert [row["caption"] for row in rows] == [*job.names[::2], *job.names[1::2]]
    page = job.folder / "labeled.report.html"
    assert page.read_text().count("data:image/jpeg;base64,") == 6
    exported = command("export", "--output", output, "--format", "coco", "--to", job.folder / "coco.json")
    assert "6 images" in exported.stdout + exported.stderr


def test_an_output_that_was_begun_with_paths_of_rows_alone_goes_on_with_them(
    make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(6)
    written_folder(job.folder / "in", job, own_paths=True)
    output = job.folder / "labeled"
    given = ["--input", str(job.folder / "in"), "--output", str(output), "--api-base", f"{stand_in.url}/v1"]
    folder = Workspace(output).common_folder
    folder.parent.mkdir()
    folder.write_text(f"{job.folder}/in/")
    done = job.run_with([*given, "--without-prefect"])
    assert done.returncode == 0, done.stderr
    assert [row["image_path"] for row in lines_of(output / "1.jsonl")] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.deployed
def test_a_bucket_of_parquet_files_is_run_again_and_retried(
    make_job: MakeJob, bucket: Bucket, stand_in: StandIn
) -> None:
    job = make_job(6)
    written_folder(job.folder / "in", job, own_paths=False)
    bucket.fs.put(str(job.folder / "in"), f"{bucket.url}/in", recursive=True)
    output = job.folder / "labeled"
    given = ["--input", f"{bucket.url}/in", "--output", str(output), "--api-base", f"{stand_in.url}/v1"]
    stand_in.set_faults({"kind": "400", "count": None, "match": "0003"})
    assert job.run_with([*given, "--without-prefect"]).returncode == 1
    stand_in.set_faults()
    done = job.run_with([*given, "--without-prefect"])
    assert "1 are finished, 1 to do" in done.stderr
    assert done.returncode == 0, done.stderr
    assert "2 are finished, 0 to do" in job.run_with([*given, "--without-prefect"]).stderr
    assert max(stand_in.asked().values()) <= 2
    assert sum(len(lines_of(path)) for path in output.iterdir()) == 6
