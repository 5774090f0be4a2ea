"""`vllm-annotate evaluate` and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done
from tests.evaluation.scenes import write_rows, write_scenes

Command = Callable[..., Done]


def test_it_prints_tables_or_json_and_writes_both_files(command: Command, tmp_path: Path) -> None:
    write_scenes(tmp_path, 20)
    paths = ["--output", tmp_path / "labeled.jsonl", "--truth", tmp_path / "truth.json"]
    done = command("evaluate", *paths)
    assert done.code == 0, done.err
    assert "20 images scored." in done.out
    assert str(tmp_path / "labeled.evaluation.html") in done.out
    as_json = command("evaluate", *paths, "--json")
    assert as_json.code == 0
    assert json.loads(as_json.out) == json.loads((tmp_path / "labeled.evaluation.json").read_text())
    assert set(json.loads(as_json.out)) >= {"precision", "recall", "f1", "mean_iou", "intervals"}
    assert command("evaluate", *paths, "--json").out == as_json.out, "the same files give the same figures"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output and --truth: required"),
        (["--output", "labeled.jsonl"], "--truth: required"),
        (["--output", "none.jsonl", "--truth", "truth.json"], "--output 'none.jsonl' does not exist"),
        (
            ["--output", "labeled.jsonl", "--truth", "s3://b/t.json"],
            "--truth 's3://b/t.json' is a URL, and only local files",
        ),
        (["--output", "nothing://b/o", "--truth", "truth.json"], "'nothing://b/o' is not a URL that fsspec"),
        (["--output", "labeled.jsonl", "--truth", "none"], "--truth 'none' does not exist"),
        (["--output", "~nobody-of-this-name/o", "--truth", "none"], "does not exist: write the full path"),
        (["--output", "truth.json", "--truth", "truth.json"], "has no row with image_path and objects"),
        (["--output", "labeled.jsonl", "--truth", "truth.json", "--image-root", "none"], "--image-root 'none' is not"),
        (["--output", "labeled.jsonl", "--truth", "truth.json", "--synonyms", "none"], "cannot be read"),
        (["--output", "labeled.jsonl", "--truth", "truth.json", "--threshold", "1"], "--threshold"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    arguments: list[str], message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    done = command("evaluate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.glob("*evaluation*"))


def test_images_come_from_the_folder_that_the_run_remembers(command: Command, tmp_path: Path) -> None:
    write_rows(tmp_path / "labeled.jsonl", [{"image_path": "a.jpg", "objects": []}])
    write_rows(tmp_path / "t.jsonl", [{"image_path": "a.jpg", "objects": [{"name": "cat", "bbox": [1, 1, 9, 9]}]}])
    (tmp_path / "labeled.work").mkdir()
    (tmp_path / "labeled.work" / "job.json").write_text(json.dumps({"image_root": str(tmp_path)}))
    assert command("evaluate", "--output", tmp_path / "labeled.jsonl", "--truth", tmp_path / "t.jsonl").code == 0
    assert "No such file or directory" in (tmp_path / "labeled.evaluation.html").read_text()
