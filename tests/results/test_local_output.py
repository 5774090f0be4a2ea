"""Outputs in an object store are scored, compared, exported and reviewed as those on this machine are."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from PIL import Image

from tests.cli.conftest import Done, command
from tests.conftest import ROOT, lines_of
from tests.evaluation.scenes import write_rows, write_scenes
from tests.support.s3 import Bucket
from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.files import image_root_of
from vllm_annotate.results.local_output import local_output
from vllm_annotate.storage.lock import locked
from vllm_annotate.storage.state_folder import state_folder
from vllm_annotate.storage.uploads import ObjectChangedError

__all__ = ["command"]  # a fixture
Command = Callable[..., Done]
Rows = list[dict[str, Any]]

pytestmark = pytest.mark.deployed


@pytest.fixture(params=["labeled.jsonl", "labeled"])
def name(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> str:
    """The name of an output of 30 scenes that is here and in a bucket: a file, or a folder with files of each form."""
    write_scenes(tmp_path, 30)
    (tmp_path / "labeled.report.json").write_text(json.dumps({"made_by": [MADE_BY]}))
    file, folder = tmp_path / "labeled.jsonl", tmp_path / "labeled"
    if request.param == "labeled":
        rows = lines_of(file)
        file.unlink()
        (folder / "a").mkdir(parents=True)
        write_rows(folder / "a" / "00000.jsonl", rows[:10])
        (folder / "00001.jsonl.zst").write_bytes(zstandard.compress(as_lines(rows[10:20])))
        pl.DataFrame({"row": as_lines(rows[20:]).decode().splitlines()}).write_parquet(folder / "00002.parquet")
    for image in ("0001.jpg", "0002.jpg"):
        Image.new("RGB", (64, 48)).save(tmp_path / image)
    (tmp_path / "labeled.work").mkdir()
    (tmp_path / "labeled.work" / "job.json").write_text(json.dumps({"image_root": str(tmp_path)}))
    for path in (path for path in tmp_path.rglob("*") if path.is_file() and "labeled" in str(path)):
        bucket.fs.put_file(str(path), f"{bucket.url}/{path.relative_to(tmp_path)}")
    return str(request.param)


MADE_BY = {
    "recipe": "abc",
    "settings": {},
    "model": "m",
    "first": "2026-01-01T00:00:00Z",
    "last": "2026-01-01T00:00:00Z",
}


def as_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_scores_are_those_of_a_local_output_and_lie_beside_it_in_the_store(
    name: str, command: Command, bucket: Bucket, tmp_path: Path
) -> None:
    here = command("evaluate", "--output", tmp_path / name, "--truth", tmp_path / "truth.json", "--json")
    there = command("evaluate", "--output", f"{bucket.url}/{name}", "--truth", tmp_path / "truth.json", "--json")
    assert there.code == 0, there.err
    figures = json.loads(there.out)
    assert figures.pop("output") == f"{bucket.url}/{name}"
    assert figures == {key: value for key, value in json.loads(here.out).items() if key != "output"}
    assert json.loads(bucket.lines("labeled.evaluation.json"))["f1"] == figures["f1"]
    page = bucket.lines("labeled.evaluation.html")
    local = (tmp_path / "labeled.evaluation.html").read_text()
    assert page.decode() == local.replace(str(tmp_path / name), f"{bucket.url}/{name}")
    assert b"data:image/jpeg" in page, "from the image root of its run"
    again = command("compare", "--output", f"{bucket.url}/{name}", "--with", tmp_path / name)
    assert again.code == 0, again.err
    assert f"{bucket.url}/labeled.comparison.html" in again.out
    assert bucket.lines("labeled.comparison.html")
    assert not list((state_folder() / "reading").iterdir()), "no copy is left"


def test_exports_are_those_of_a_local_output(name: str, command: Command, bucket: Bucket, tmp_path: Path) -> None:
    for where, to in ((str(tmp_path / name), "here"), (f"{bucket.url}/{name}", "there")):
        (tmp_path / to).mkdir()
        files = ["--to", tmp_path / to / "boxes.json", "--card", tmp_path / to / "README.md"]
        done = command("export", "--output", where, "--format", "coco", *files)
        assert done.code == 0, done.err
    for file in ("boxes.json", "README.md"):
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()
    assert "| m |" in (tmp_path / "there" / "README.md").read_text(), "as its report says"


def test_reviews_go_back_to_the_store_and_never_over_those_of_somebody_else(
    name: str, command: Command, bucket: Bucket, tmp_path: Path
) -> None:
    url, tasks, export = f"{bucket.url}/{name}", tmp_path / "tasks.json", tmp_path / "export.json"
    written = command("review", "--output", url, "--to", tasks, "--most", "5")
    assert written.code == 0, written.err
    reviewed: Rows = [
        task | {"annotations": [{"was_cancelled": False, "result": task["predictions"][0]["result"]}]}
        for task in json.loads(tasks.read_text())
    ]
    for some in (reviewed[:2], reviewed[2:]):
        export.write_text(json.dumps(some))
        done = command("review", "--output", url, "--from", export)
        assert done.code == 0, done.err
        assert f"{bucket.url}/labeled.reviewed.jsonl" in done.out
    rows = [json.loads(line) for line in bucket.lines("labeled.reviewed.jsonl").splitlines()]
    assert [row["image_path"] for row in rows] == [task["data"]["image_path"] for task in reviewed]
    assert all(row["reviewed"] for row in rows)
    with local_output(url) as output:
        target = output.path.with_name("labeled.reviewed.jsonl")
        assert target.read_bytes() == bucket.lines("labeled.reviewed.jsonl")
        bucket.fs.pipe_file(f"{bucket.url}/labeled.reviewed.jsonl", b"somebody else's\n")
        with pytest.raises(ObjectChangedError, match="another program"):
            output.publish([target])
    assert bucket.lines("labeled.reviewed.jsonl") == b"somebody else's\n"


def test_a_link_of_the_same_name_in_the_current_folder_changes_nothing(
    command: Command, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, 2)
    bucket.fs.put_file(str(tmp_path / "labeled.jsonl"), f"{bucket.url}/labeled.jsonl")
    bucket.fs.pipe_file(f"{bucket.url}/labeled.reviewed.jsonl", b"{}\n")
    (tmp_path / "labeled.jsonl").rename(tmp_path / "run-7.jsonl")
    (tmp_path / "labeled.jsonl").symlink_to(tmp_path / "run-7.jsonl")
    monkeypatch.chdir(tmp_path)
    with local_output(f"{bucket.url}/labeled.jsonl") as output:
        assert output.path.with_name("labeled.reviewed.jsonl").read_bytes() == b"{}\n"


@pytest.mark.parametrize("job", ["labeled.work/job.json", "labeled.shards/01-of-02.work/job.json"])
@pytest.mark.parametrize("output", ["labeled", "labeled/a/00000.parquet"])
def test_images_come_from_the_job_of_the_folder_or_of_its_shards(
    output: str, job: str, bucket: Bucket, tmp_path: Path
) -> None:
    pl.DataFrame({"row": ['{"image_path": "a.jpg", "objects": []}']}).write_parquet(tmp_path / "0.parquet")
    bucket.fs.put_file(str(tmp_path / "0.parquet"), f"{bucket.url}/labeled/a/00000.parquet")
    bucket.fs.pipe_file(f"{bucket.url}/{job}", json.dumps({"image_root": str(tmp_path)}).encode())
    with local_output(f"{bucket.url}/{output}") as here:
        assert image_root_of(here.path, None) == tmp_path


def test_a_copy_that_is_ended_leaves_nothing(bucket: Bucket, tmp_path: Path) -> None:
    write_scenes(tmp_path, 2)
    bucket.fs.put_file(str(tmp_path / "labeled.jsonl"), f"{bucket.url}/labeled/0.jsonl")
    stopped = threading.Event()
    stopped.set()
    with (
        pytest.raises(UsageError, match="cannot be reached: Operation canceled"),
        local_output(f"{bucket.url}/labeled", stopped),
    ):
        pass
    assert not list((state_folder() / "reading").iterdir())


class Endless(SimpleHTTPRequestHandler):
    """A large output, slowly."""

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path.endswith("labeled.jsonl") else 404)
        self.send_header("Content-Length", str(1 << 30))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with suppress(OSError):
            while True:
                self.wfile.write(b"{}\n" * 10_000)
                time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_130_soon_when_it_is_interrupted_while_it_copies(number: signal.Signals, tmp_path: Path) -> None:
    write_scenes(tmp_path, 2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/labeled.jsonl"
    words = ["evaluate", "--output", url, "--truth", str(tmp_path / "truth.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.program", *words],
        cwd=ROOT, env=os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    reading = tmp_path / "state" / "vllm-annotate" / "reading"
    while not list(reading.glob("*/.labeled*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "interrupted: nothing was written\n")
    assert not list(reading.iterdir())
    server.shutdown()


def test_copies_of_killed_processes_go_and_those_of_others_stay(bucket: Bucket) -> None:
    bucket.fs.pipe_file(f"{bucket.url}/labeled.jsonl", b"{}\n")
    names = ("killed", "young", "held")
    killed, young, held = folders = [state_folder() / "reading" / name for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
        if folder != young:
            os.utime(folder, (1, 1))
    with locked(held / "lock"):
        os.utime(held, (1, 1))
        with local_output(f"{bucket.url}/labeled.jsonl"):
            assert [folder.exists() for folder in (killed, young, held)] == [False, True, True]


def test_a_store_that_only_reads_costs_no_figures(
    command: Command, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, 2)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/labeled.jsonl"
    done = command("evaluate", "--output", url, "--truth", tmp_path / "truth.json")
    server.shutdown()
    assert done.code == 0, done.err
    assert "2 images scored." in done.out
    assert str(tmp_path / "here" / "labeled.evaluation.html") in done.out
    assert json.loads((tmp_path / "here" / "labeled.evaluation.json").read_text())["output"] == url


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--truth", "none.json"),
        ("compare", "--with", "labeled.jsonl", "--synonyms", "none.yaml"),
        ("export", "--format", "coco", "--to", "labeled.jsonl"),
        ("export", "--format", "coco", "--to", "new.json", "--card", "labeled.jsonl"),
        ("review", "--to", "labeled.jsonl"),
        ("review", "--from", "none.json"),
    ],
)
def test_what_is_wrong_here_is_said_before_anything_is_copied(
    words: tuple[str, ...], command: Command, tmp_path: Path, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    done = command(*words, "--output", "s3://bucket/labeled.jsonl")
    assert (done.code, done.out) == (2, "")
    assert "none" in done.err or "labeled.jsonl" in done.err
    assert "cannot be reached" not in done.err


def test_no_password_of_a_url_is_shown(command: Command, tmp_path: Path) -> None:
    write_scenes(tmp_path, 2)
    done = command("evaluate", "--output", "s3://key:hunter2@b/o.jsonl", "--truth", tmp_path / "truth.json")
    assert done.code == 2
    assert "must not contain a password" in done.err
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("none.jsonl", "does not exist: name the output of a run"),
        ("other", "has no .jsonl, .jsonl.zst or .parquet file"),
        ("empty.jsonl", "empty.jsonl' is empty"),
        ("odd", "whose name no path can have"),
    ],
)
def test_what_is_no_output_is_refused_by_its_url(
    output: str, message: str, command: Command, bucket: Bucket, tmp_path: Path
) -> None:
    write_scenes(tmp_path, 2)
    bucket.fs.pipe_file(f"{bucket.url}/other/1.jpg", b"1")
    bucket.fs.pipe_file(f"{bucket.url}/empty.jsonl", b"")
    bucket.fs.pipe_file(f"{bucket.url}/odd/../../a.jsonl", b"{}")
    done = command("evaluate", "--output", f"{bucket.url}/{output}", "--truth", tmp_path / "truth.json")
    assert (done.code, done.out) == (2, "")
    assert f"{bucket.url}/{output}" in done.err
    assert message in done.err


def test_an_output_that_does_not_fit_on_the_disk_is_refused_before_it_is_copied(
    command: Command, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, 2)
    bucket.fs.put_file(str(tmp_path / "labeled.jsonl"), f"{bucket.url}/labeled.jsonl")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))
    done = command("evaluate", "--output", f"{bucket.url}/labeled.jsonl", "--truth", tmp_path / "truth.json")
    assert done.code == 2
    assert "set XDG_STATE_HOME to a folder on a larger disk" in done.err
