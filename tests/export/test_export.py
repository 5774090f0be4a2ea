"""The command, for all formats."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.export.conftest import Done
from vllm_annotate.cli import export as cli
from vllm_annotate.export.export import FORMATS

PROGRAM = "import sys; from vllm_annotate.cli.main import main; sys.exit(main(sys.argv[1:]))"
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
        ({"--output": "nothing://bucket/labeled.jsonl"}, "'nothing://bucket/labeled.jsonl' is not a URL that fsspec"),
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


FOLDERS = [".", "/", "..", "x/", "x/.", "x/..", "sub", "sub/", "./sub/.", "~", "sub/../sub"]


@pytest.mark.parametrize("where", FOLDERS)
@pytest.mark.parametrize("option", ["--to", "--card"])
@pytest.mark.parametrize("form", [["coco"], ["label-studio"], ["parquet", "--split", "a=0.5,b=0.5"]])
def test_a_folder_is_refused_as_the_new_file(
    form: list[str], option: str, where: str, rows: Rows, write_output: Callable[..., Path],
    command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    options = {"--output": write_output(*rows), "--to": "boxes.json", option: where}
    done = command("export", "--format", *form, *(word for pair in options.items() for word in pair))
    assert done.code == 2
    assert f"{option} '" in done.err
    assert "is a folder: add the name of the new file" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labeled.jsonl", "sub"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("~nobody-of-this-name/x", "the home folder of '~nobody-of-this-name/x' does not exist: write the full path"),
        ("s3://bucket/boxes.json", "is a URL, and only local files are written: name one"),
        ("x" * 300, "cannot be written: File name too long; choose a name"),
        ("\udcff", "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("form", [["coco"], ["label-studio", "--split", "a=0.5,b=0.5"]])
def test_a_name_that_no_file_can_have_is_refused(
    form: list[str], where: Any, message: str, rows: Rows, write_output: Callable[..., Path],
    export: Callable[..., Done], tmp_path: Path,
) -> None:  # fmt: skip
    done = export(write_output(*rows), form[0], where, *form[1:])
    assert done.code == 2
    assert message in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["labeled.jsonl"]


def test_a_killed_export_leaves_no_file_and_the_same_command_then_writes_it(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    output = write_output(*(row | {"image_path": f"{n}/{row['image_path']}"} for n in range(500) for row in rows))
    to = tmp_path / "boxes.json"
    arguments = ["export", "--output", output, "--format", "coco", "--to", to]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.unfinished")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was killed while it wrote"
    assert not to.exists()
    assert export(output, "coco", to).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"labeled.jsonl", "boxes.json"}


@pytest.mark.parametrize("form", FORMATS)
def test_a_disk_without_room_is_refused_in_words_and_nothing_is_left(
    form: str, rows: Rows, write_output: Callable[..., Path], tmp_path: Path
) -> None:
    output = write_output(*(row | {"image_path": f"{n}/{row['image_path']}"} for n in range(20) for row in rows))
    to = tmp_path / "exported.x"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); {PROGRAM}"
    arguments = ["export", "--output", output, "--format", form, "--to", to]
    done = subprocess.run([sys.executable, "-c", limit, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {to}: File too large")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["labeled.jsonl"]


def test_options_that_are_missing_are_named(command: Callable[..., Done]) -> None:
    done = command("export", "--format", "coco")
    assert done.code == 2
    assert "error: --output and --to: required" in done.err
