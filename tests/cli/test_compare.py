"""`vllm-annotate compare` and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done
from tests.evaluation.scenes import write_rows, write_scenes

Command = Callable[..., Done]


def test_it_prints_tables_or_json_and_writes_both_files(command: Command, tmp_path: Path) -> None:
    write_scenes(tmp_path, 20)
    paths = ["--output", tmp_path / "labeled.jsonl", "--with", tmp_path / "truth.jsonl"]
    done = command("compare", *paths, "--truth", tmp_path / "truth.json")
    assert done.code == 0, done.err
    assert "20 images compared." in done.out
    assert "B is better with probability" in done.out
    assert str(tmp_path / "labeled.comparison.html") in done.out
    as_json = command("compare", *paths, "--json")
    assert json.loads(as_json.out) == json.loads((tmp_path / "labeled.comparison.json").read_text())
    assert json.loads(as_json.out)["truth"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output and --with: required"),
        (["--output", "labeled.jsonl", "--with", "none.jsonl"], "--with 'none.jsonl' does not exist"),
        (["--output", "labeled.jsonl", "--with", "other.jsonl"], "have no image in common"),
        (["--output", "labeled.jsonl", "--with", "labeled.jsonl", "--truth", "other.jsonl"], "no image in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: list[str], message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, 2)
    write_rows(tmp_path / "other.jsonl", [{"image_path": "other", "objects": []}])
    monkeypatch.chdir(tmp_path)
    done = command("compare", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not list(tmp_path.glob("*comparison*"))
