"""An output that is a folder in an object store: any machine can resume, and each object is written once."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from flows.annotate_sharded import check_input
from stand_in.process import StandIn
from tests.conftest import Job
from tests.support.corpus import command
from tests.support.s3 import Bucket
from vllm_annotate.errors import UsageError
from vllm_annotate.job import Job as Parameters
from vllm_annotate.results.folder_mirror import SHOWN

MakeJob = Callable[[int], Job]

pytestmark = [pytest.mark.deployed, pytest.mark.timeout(400)]


class Corpus:
    """Input files in a bucket, over the images of a job that are there too."""

    def __init__(self, job: Job, bucket: Bucket, files: int) -> None:
        self.job, self.bucket = job, bucket
        self.url, self.output = f"{bucket.url}/inputs", f"{bucket.url}/labeled"
        rows, each = job.rows(), len(job.names) // files
        for number in range(files):
            self.write(f"{number % 2}/{number:02d}.jsonl", rows[number * each : (number + 1) * each])

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(row) + "\n" for row in rows)
        self.bucket.fs.pipe_file(f"{self.url}/{name}", content.encode())

    def arguments(self, server: StandIn, *more: str) -> list[str]:
        paths = ["--input", self.url, "--image-root", f"{self.bucket.url}/images", "--output", self.output]
        return [*paths, "--api-base", f"{server.url}/v1", "--without-prefect", *more]

    def run(self, server: StandIn, *more: str) -> Any:
        return self.job.run_with(self.arguments(server, *more))

    def rows_of(self, folder: str) -> dict[str, list[str]]:
        """The image paths in each object of a folder."""
        below = folder.removeprefix("s3://")
        contents = {name: self.bucket.fs.cat_file(name) for name in self.bucket.fs.find(folder)}
        return {
            name.removeprefix(f"{below}/"): [json.loads(line)["image_path"] for line in content.splitlines()]
            for name, content in contents.items()
        }

    def kept(self) -> set[str]:
        """The images with an answer in the bucket, in an output or in a part."""
        objects = [*self.bucket.fs.find(self.output), *(name for name in self.left_over() if "/parts/" in name)]
        lines = (line for name in objects for line in self.bucket.fs.cat_file(name).splitlines())
        return {json.loads(line)["image_path"] for line in lines}

    def objects(self) -> dict[str, str]:
        """The version of each object of the output."""
        return {name: info["ETag"] for name, info in self.bucket.fs.find(self.output, detail=True).items()}

    def left_over(self) -> list[str]:
        """Objects that only a run needs."""
        names = self.bucket.fs.find(self.bucket.url)
        return [name for name in names if "/parts/" in name or name.endswith("/lease") or "/files/" in name]

    def release(self) -> None:
        """Removes the lease of a run that was killed: the next one would wait a minute for it."""
        if self.bucket.fs.exists(lease := f"{self.output}.work/lease"):
            self.bucket.fs.rm(lease)


@pytest.fixture
def corpus(make_remote_job: MakeJob, bucket: Bucket) -> Corpus:
    """Four files of three images."""
    return Corpus(make_remote_job(12), bucket, 4)


def test_each_input_file_is_an_object_that_is_not_written_again(corpus: Corpus, stand_in: StandIn) -> None:
    done = corpus.run(stand_in)
    assert done.returncode == 0, done.stderr
    assert corpus.rows_of(corpus.output) == corpus.rows_of(corpus.url)
    assert corpus.left_over() == []
    report = json.loads(corpus.bucket.lines("labeled.report.json"))
    assert (report["output"]["images"], report["output"]["quality"]["answers"]) == (12, 12)
    before = corpus.objects()
    again = corpus.run(stand_in)
    assert "4 input files: 4 are finished, 0 to do" in again.stderr
    assert corpus.objects() == before
    corpus.write("2/new.jsonl", corpus.job.rows()[:1])
    assert corpus.run(stand_in).returncode == 0
    assert corpus.rows_of(corpus.output) == corpus.rows_of(corpus.url)
    assert corpus.objects().items() > before.items()
    assert sum(stand_in.asked().values()) == 13


def test_another_machine_knows_what_is_finished_and_what_failed(
    corpus: Corpus, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in.set_faults({"kind": "400", "count": None, "match": "000[15]"})
    failed = corpus.run(stand_in)
    assert failed.returncode == 1, failed.stderr
    assert len(corpus.bucket.lines("labeled.failures.jsonl").splitlines()) == 2
    shutil.rmtree(tmp_path / "state")  # what this machine knows
    stand_in.set_faults()
    stand_in.forget()
    done = corpus.run(stand_in)
    assert done.returncode == 0, done.stderr
    assert "4 input files: 2 are finished, 2 to do" in done.stderr
    assert sum(stand_in.asked().values()) == 2
    assert {name: sorted(paths) for name, paths in corpus.rows_of(corpus.output).items()} == corpus.rows_of(corpus.url)
    assert corpus.bucket.lines("labeled.failures.jsonl") == b""
    assert corpus.left_over() == []
    shutil.rmtree(tmp_path / "state")
    assert "0 of 12 images are open" in corpus.run(stand_in, "--dry-run").stdout
    assert command("report", "--output", corpus.output).returncode == 0
    assert corpus.bucket.lines("labeled.report.html").count(b"data:image/jpeg;base64,") == 12


def test_runs_that_are_killed_on_one_machine_after_another_lose_and_repeat_nothing(
    make_remote_job: MakeJob, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(make_remote_job(60), bucket, 4)  # 15 images a file
    with StandIn.started("--canned", "--prefill-seconds", "0.25") as server:
        given = corpus.arguments(server, "--max-concurrency", "2", "--chunk-size", "2")
        kept: dict[str, int] = {}  # images whose answers were in the bucket at a kill, and how often they were asked
        for kill in range(1, 4):
            monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / f"state-{kill}"))
            run = corpus.job.start_with(given)
            while sum(server.asked().values()) < 14 * kill and run.poll() is None:
                time.sleep(0.01)
            run.kill()
            run.communicate()
            asked = server.asked()
            kept |= {path: asked[f"caption of {path}"] for path in corpus.kept() - kept.keys()}
            corpus.release()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-4"))
        assert "of 60 images are open" in corpus.run(server, "--dry-run").stdout
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-1"))  # back on the first machine
        done = corpus.job.run_with(given)
        assert done.returncode == 0, done.stderr
        assert kept, "a chunk is uploaded once it has ended"
        assert {path: server.asked()[f"caption of {path}"] for path in kept} == kept, "not asked again"
    # Answers that other machines uploaded come first, in their order.
    assert {name: sorted(paths) for name, paths in corpus.rows_of(corpus.output).items()} == corpus.rows_of(corpus.url)
    assert corpus.left_over() == []


def test_an_object_that_another_program_writes_is_not_overwritten(make_remote_job: MakeJob, bucket: Bucket) -> None:
    corpus = Corpus(make_remote_job(12), bucket, 1)
    theirs = b'{"image_path": "0003.jpg", "of": "another program"}\n'
    with StandIn.started("--canned", "--prefill-seconds", "0.2") as server:
        run = corpus.job.start_with(corpus.arguments(server, "--max-concurrency", "2"))
        while not server.asked():
            time.sleep(0.01)
        bucket.fs.pipe_file(f"{corpus.output}/0/00.jsonl", theirs)
        _, said = run.communicate(timeout=120)
        assert run.returncode == 1
        assert "another program has written" in said
        assert bucket.fs.cat_file(f"{corpus.output}/0/00.jsonl") == theirs
        done = corpus.run(server)
        assert done.returncode == 0, done.stderr
        assert sum(server.asked().values()) == 12
    content = bucket.fs.cat_file(f"{corpus.output}/0/00.jsonl")
    assert content.startswith(theirs)
    assert sorted(json.loads(line)["image_path"] for line in content.splitlines()) == corpus.job.names


def test_two_runs_of_one_file_leave_no_image_in_both_output_and_failures(
    make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(make_remote_job(8), bucket, 1)
    with StandIn.started("--canned", "--prefill-seconds", "0.2") as slow:
        slow.set_faults({"kind": "400", "count": None, "match": "0001"})
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-2"))
        late = corpus.job.start_with(corpus.arguments(slow, "--max-concurrency", "1", "--shard", "1/1"))
        while not slow.asked():
            time.sleep(0.02)
        late.send_signal(signal.SIGSTOP)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-1"))
        assert corpus.run(stand_in).returncode == 0
        late.send_signal(signal.SIGCONT)
        _, said = late.communicate(timeout=120)
    assert late.returncode == 1
    assert "another program has written" in said
    assert corpus.run(stand_in).returncode == 0
    merged = command("merge-shards", "--output", corpus.output)
    assert merged.returncode == 0, merged.stdout
    assert corpus.rows_of(corpus.output) == corpus.rows_of(corpus.url)
    assert corpus.bucket.lines("labeled.failures.jsonl") == b""
    assert corpus.left_over() == []


def test_the_newest_outputs_stay_on_this_machine(
    make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn, tmp_path: Path
) -> None:
    corpus = Corpus(make_remote_job(4), bucket, 1)
    for number in range(2):
        for each in range(SHOWN):
            corpus.write(f"{number}/{each:02d}.jsonl", corpus.job.rows()[:1])
        assert corpus.run(stand_in).returncode == 0
        assert len(list(tmp_path.glob("state/**/labeled/**/*.jsonl"))) == SHOWN
    stand_in.forget()
    oldest = sorted(tmp_path.glob("state/**/labeled/**/*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    for name in ("0/00", f"1/{oldest[0].stem}", f"1/{oldest[1].stem}"):  # while others are finished, copies are removed
        corpus.write(f"{name}.jsonl", corpus.job.rows()[:3])
    done = corpus.run(stand_in)
    assert done.returncode == 0, done.stderr
    assert sum(stand_in.asked().values()) == 6
    assert corpus.rows_of(corpus.output) == corpus.rows_of(corpus.url)


def test_shards_write_into_one_folder_and_are_merged(corpus: Corpus, stand_in: StandIn) -> None:
    for number in (1, 2):
        done = corpus.run(stand_in, "--shard", f"{number}/2")
        assert done.returncode == 0, done.stderr
    merged = command("merge-shards", "--output", corpus.output)
    assert merged.returncode == 0, merged.stderr
    assert "12 images: 12 answered, 0 failed; 4 of 4 input files are finished" in merged.stdout
    assert corpus.rows_of(corpus.output) == corpus.rows_of(corpus.url)
    report = json.loads(corpus.bucket.lines("labeled.report.json"))
    assert report["output"]["quality"]["answers"] == 12
    assert "4 input files: 4 are finished, 0 to do" in corpus.run(stand_in).stderr
    assert max(stand_in.asked().values()) == 1


def test_outputs_beside_inputs_are_no_inputs(make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn) -> None:
    corpus = Corpus(make_remote_job(4), bucket, 1)
    corpus.output = f"{corpus.url}/labeled/"
    assert corpus.run(stand_in).returncode == 0
    again = corpus.run(stand_in)
    assert "1 input files: 1 are finished, 0 to do" in again.stderr


def test_a_folder_with_other_objects_is_not_written_into(corpus: Corpus, stand_in: StandIn) -> None:
    corpus.output = f"{corpus.bucket.url}/images"
    done = corpus.run(stand_in)
    assert done.returncode == 2
    assert "is a folder with other files, such as" in done.stderr
    assert not stand_in.asked()


@pytest.mark.parametrize("key", ["/tmp/evil.jsonl", "x//y.jsonl", "x/./y.jsonl"])
def test_keys_that_are_no_paths_are_refused(corpus: Corpus, stand_in: StandIn, key: str) -> None:
    name, _, folder = corpus.url.removeprefix("s3://").partition("/")
    corpus.bucket.fs.call_s3("put_object", Bucket=name, Key=f"{folder}/{key}", Body=b"{}")
    done = corpus.run(stand_in, "--dry-run")
    assert done.returncode == 2
    assert f"the input file {key!r} has an empty, '.' or '..' part in its name" in done.stderr


def test_the_sharded_flow_looks_at_a_folder_in_a_bucket_before_it_starts_shards(corpus: Corpus) -> None:
    job = Parameters(input=corpus.url, image_root=f"{corpus.bucket.url}/images", output=corpus.output)
    check_input(job, 4)
    with pytest.raises(UsageError, match="4 input files and 5 shards"):
        check_input(job, 5)


@pytest.mark.parametrize("form", ["jsonl.zst", "parquet"])
def test_outputs_of_any_form_get_rows_from_another_machine(
    corpus: Corpus, stand_in: StandIn, tmp_path: Path, form: str
) -> None:
    stand_in.set_faults({"kind": "400", "count": None, "match": "0001"})
    assert corpus.run(stand_in, "--output-format", form).returncode == 1
    name = f"{corpus.output}/0/00.{form}"
    before = corpus.bucket.fs.cat_file(name)
    shutil.rmtree(tmp_path / "state")
    stand_in.set_faults()
    done = corpus.run(stand_in)
    assert done.returncode == 0, done.stderr
    after = corpus.bucket.fs.cat_file(name)
    if form == "parquet":
        paths = pl.read_parquet(after)["image_path"].to_list()
    else:
        assert after.startswith(before)
        text = zstandard.ZstdDecompressor().stream_reader(after, read_across_frames=True).read()
        paths = [json.loads(line)["image_path"] for line in text.splitlines()]
    assert paths == ["0000.jpg", "0002.jpg", "0001.jpg"]
    assert sorted(corpus.objects()) == [
        f"{corpus.output.removeprefix('s3://')}/{number % 2}/{number:02d}.{form}" for number in (0, 2, 1, 3)
    ]
    assert "4 input files: 4 are finished, 0 to do" in corpus.run(stand_in).stderr
    assert sum(stand_in.asked().values()) == 12 + 1
