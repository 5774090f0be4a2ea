"""The most doubtful images, as tasks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.export.conftest import Done, command, rows, write_audit, write_output

__all__ = ["command", "rows", "write_output"]  # fixtures
Rows = list[dict[str, Any]]


def tasks_of(path: Path) -> list[str]:
    return [task["data"]["image_path"] for task in json.loads(path.read_text())]


def test_the_most_doubtful_come_first_and_no_more_than_asked_for(
    rows: Rows, write_output: Callable[..., Path], command: Callable[..., Done], tmp_path: Path
) -> None:
    agreement = {row["image_path"]: (number * 37 % 100) / 100 for number, row in enumerate(rows)}
    for row in rows:
        row["agreement"] = 1 - agreement[row["image_path"]]  # a column of the input
    write_audit(tmp_path, agreement)
    output, to = write_output(*rows, "torn {"), tmp_path / "tasks.json"
    done = command("review", "--output", output, "--most", 7, "--to", to)
    assert done.code == 0, done.err
    assert f"7 images to review: {to}" in done.out
    worst = sorted(agreement, key=lambda image: agreement[image])[:7]
    assert tasks_of(to) == worst
    scores = [task["predictions"][0]["score"] for task in json.loads(to.read_text())]
    assert scores == [agreement[image] for image in worst]


def test_equally_doubtful_ones_keep_their_order_and_an_answer_that_could_not_be_parsed_is_a_task_without_boxes(
    rows: Rows, write_output: Callable[..., Path], command: Callable[..., Done], tmp_path: Path
) -> None:
    for row in rows[10:13]:
        row |= {"annotations_error": True, "annotations": None, "objects": []}
    to = tmp_path / "tasks.json"
    assert command("review", "--output", write_output(*rows, *rows), "--most", 3, "--to", to).code == 0
    tasks = json.loads(to.read_text())
    assert len(tasks) == len({task["data"]["image_path"] for task in tasks})
    assert tasks[0]["data"]["image_path"] == rows[10]["image_path"]
    assert tasks[0]["predictions"][0]["result"] == []
    labels = [each.attrib["value"] for each in ElementTree.parse(tmp_path / "tasks.xml").getroot().iter("Label")]  # noqa: S314
    assert "cat" in labels, "a person needs labels to choose from"


def test_images_that_were_reviewed_do_not_come_again(
    rows: Rows, write_output: Callable[..., Path], command: Callable[..., Done], tmp_path: Path
) -> None:
    output = write_output(*rows)
    reviewed = "".join(json.dumps({"image_path": row["image_path"]}) + "\n" for row in rows[:90])
    (tmp_path / "labeled.reviewed.jsonl").write_text(reviewed)
    done = command("review", "--output", output, "--to", tmp_path / "tasks.json", "--image-url", "https://h/i")
    assert done.code == 0
    assert sorted(tasks_of(tmp_path / "tasks.json")) == sorted(row["image_path"] for row in rows[90:])
    assert json.loads((tmp_path / "tasks.json").read_text())[0]["data"]["image"].startswith("https://h/i/%E9%83%A8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "set --to to write tasks, or --from to read what was corrected"),
        (["--to", "t.json", "--from", "x.json"], "set --to to write tasks, or --from to read"),
        (["--to", "t.json", "--most", "0"], "--most '0' is not a count: write a whole number from 1"),
        (["--to", "t.json", "--most", "999999999"], "is more than anyone reviews"),
        (["--to", "t.xml"], "is the name of the labelling config"),
        *(
            (["--to", where], f"--to {where!r} is a folder: add the name of the new file")
            for where in (".", "/", "..", "x/", "x/.", "x/..", "sub/")
        ),
        (["--to", "sub"], "--to 'sub' is a folder: add the name of the new file"),
        (["--to", "~nobody-of-this-name/t.json"], "does not exist: write the full path"),
        (
            ["--to", "s3://bucket/t.json"],
            "--to 's3://bucket/t.json' is a URL, and only local files are written",
        ),
        (
            ["--from", "s3://bucket/t.json"],
            "--from 's3://bucket/t.json' is a URL, and only local files are read",
        ),
        (["--from", "sub"], "--from 'sub' is a folder: export the project from Label Studio"),
        (["--to", "none/t.json"], "the folder of --to 'none/t.json' does not exist"),
        (["--to", "labeled.jsonl"], "--to 'labeled.jsonl' exists and would be overwritten"),
        (["--to", "t.json", "--output", "none.jsonl"], "--output 'none.jsonl' is not a file"),
        (["--to", "t.json", "--output", "empty.jsonl"], "has no image to review: all are reviewed, or it is empty"),
        (["--to", "t.json", "--output", "old.jsonl"], "none of its images has a width and height: set --image-root"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_written(
    options: list[str], message: str, rows: Rows, write_output: Callable[..., Path], command: Callable[..., Done],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "old.jsonl").write_text('{"image_path": "a.jpg", "objects": []}\n')
    write_output(*rows)
    before = sorted(tmp_path.iterdir())
    done = command("review", "--output", "labeled.jsonl", *options)
    assert done.code == 2
    assert message in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_what_an_audit_found_comes_before_what_the_rows_say(
    rows: Rows, write_output: Callable[..., Path], command: Callable[..., Done], tmp_path: Path
) -> None:
    output, to = write_output(*rows), tmp_path / "tasks.json"
    audited = [{"image_path": rows[at]["image_path"], "agreement": share} for at, share in ((5, 0.4), (6, 1), (7, 0.0))]
    broken = [{"image_path": rows[9]["image_path"], "agreement": value} for value in (True, "0", -1, 2, None)]
    lines = [json.dumps(row) for row in [*audited, *broken, 7]]
    output.with_name("labeled.audit.jsonl").write_text("\n".join([*lines, "torn {"]))
    assert command("review", "--output", output, "--most", 2, "--to", to).code == 0
    assert tasks_of(to) == [rows[7]["image_path"], rows[5]["image_path"]]
