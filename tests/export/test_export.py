"""The command, for all formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.export.conftest import Done
from vllm_annotate.cli import export as cli
from vllm_annotate.export.export import FORMATS

Rows = list[dict[str, Any]]


def test_the_command_offers_every_format() -> None:
    assert set(cli.FORMATS) == set(FORMATS)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_there_is_never_overwritten(
    form: str, rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    output, to = write_output(*rows), tmp_path / "exported.val.x"
    to.write_text("mine")
    done = export(output, form, tmp_path / "exported.x", "--split", "train=0.5,val=0.5")
    assert done.code == 2
    assert f"--to {str(to)!r} exists and would be overwritten: choose another, or remove it" in done.err
    assert to.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported.val.x", "labeled.jsonl"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--format": "yolo"}, "--format 'yolo' is unknown: use one of coco, "),
        ({"--output": "none.jsonl"}, "--output 'none.jsonl' is not a file: name the output of a run"),
        ({"--output": "s3://bucket/labeled.jsonl"}, "copy the file to this machine"),
        ({"--to": "none/boxes.json"}, "the folder of --to 'none/boxes.json' does not exist: create it"),
        ({"--image-root": "none"}, "image root 'none' is not a folder"),
    ],
)
def test_a_wrong_option_is_refused(
    changes: dict[str, str], message: str, rows: Rows, write_output: Callable[..., Path], command: Callable[..., Done],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = {"--output": write_output(*rows), "--format": "coco", "--to": "boxes.json"} | changes
    done = command("export", *(word for pair in options.items() for word in pair))
    assert done.code == 2
    assert message in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["labeled.jsonl"]


def test_options_that_are_missing_are_named(command: Callable[..., Done]) -> None:
    done = command("export", "--format", "coco")
    assert done.code == 2
    assert "error: --output and --to: required" in done.err
