"""Corrected rows, from what Label Studio exports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import lines_of
from tests.export.conftest import Done, command, rows, write_output
from vllm_annotate.results.reviewed import reviewed_file
from vllm_annotate.review.label_studio_export import box_of
from vllm_annotate.storage.atomic import unfinished_name
from vllm_annotate.storage.new_files import exclusively

__all__ = ["command", "rows", "write_output"]  # fixtures
Rows = list[dict[str, Any]]
Import = Callable[..., Done]


@pytest.fixture
def import_reviews(command: Callable[..., Done], tmp_path: Path) -> Import:
    """Imports these tasks, or this text, into labeled.jsonl."""

    def run(tasks: Any) -> Done:
        text = tasks if isinstance(tasks, str) else json.dumps(tasks)
        (tmp_path / "export.json").write_text(text)
        return command("review", "--output", tmp_path / "labeled.jsonl", "--from", tmp_path / "export.json")

    return run


def annotated(path: str, *results: Any, **more: Any) -> dict[str, Any]:
    """A task with one annotation, as Label Studio exports it."""
    annotation = {
        "id": 7, "completed_by": {"id": 1, "email": "ann@example.org"}, "was_cancelled": False, "result": results,
        "created_at": "2026-11-25T10:00:00.000000Z", "updated_at": "2026-11-25T10:05:00.000000Z", "lead_time": 3.2,
    } | more  # fmt: skip
    return {"id": 3, "data": {"image": path, "image_path": path}, "annotations": [annotation], "drafts": [],
            "predictions": [], "meta": {}, "total_annotations": 1, "project": 1}  # fmt: skip


def rectangle(x: float, y: float, width: float, height: float, *labels: str, **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": list(labels)} | more
    return {"id": "a", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value,
            "original_width": 200, "original_height": 100, "image_rotation": 0, "origin": "manual"}  # fmt: skip


def reviewed(tmp_path: Path) -> Rows:
    return lines_of(tmp_path / "labeled.reviewed.jsonl")


def test_what_a_person_accepts_comes_back_as_it_was_and_the_output_does_not_change(
    rows: Rows, write_output: Callable[..., Path], command: Callable[..., Done], import_reviews: Import, tmp_path: Path
) -> None:
    for row in rows:
        row |= {"license": "CC0", "flags": ["swapped"], "agreement": 0.5}
    output = write_output(*rows)
    before = output.read_bytes().replace(b'"license": "CC0"', b'"license": 1e400')
    output.write_bytes(before)
    assert command("review", "--output", output, "--to", tmp_path / "tasks.json").code == 0
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    accepted = [annotated(task["data"]["image_path"], *task["predictions"][0]["result"]) for task in tasks]
    done = import_reviews(accepted)
    assert done.code == 0, done.err
    assert "100 images reviewed" in done.out
    assert output.read_bytes() == before
    found = {row["image_path"]: row for row in reviewed(tmp_path)}
    for row in rows:
        corrected = found[row["image_path"]]
        assert [item["bbox"] for item in corrected["objects"]] == [item["bbox"] for item in row["objects"]]
        assert corrected["annotations"] == {
            "rationale": row["annotations"]["rationale"], "objects": corrected["objects"],
        }  # fmt: skip
        assert set(corrected) == {
            "image_path", "caption", "license", "agreement", "annotations", "objects", "width", "height",
            "reviewed", "reviewed_by", "reviewed_at",
        }  # fmt: skip
        assert (corrected["width"], corrected["height"]) == (row["width"], row["height"])
        assert corrected["reviewed"] is True
        assert (corrected["reviewed_by"], corrected["reviewed_at"][:10]) == ("ann@example.org", "2026-11-25")
    assert b'"license":1e400' in (tmp_path / "labeled.reviewed.jsonl").read_bytes()


def test_the_latest_annotation_counts_and_skipped_ones_do_not(
    rows: Rows, write_output: Callable[..., Path], import_reviews: Import, tmp_path: Path
) -> None:
    write_output(*rows)
    path = rows[0]["image_path"]
    task = annotated(path, rectangle(10, 10, 10, 10, "new"), updated_at="2026-11-25T12:00:00+01:00", completed_by=5)
    task["annotations"] += [
        annotated(path, rectangle(1, 1, 1, 1, "old"), updated_at="2026-11-25T10:30:00Z")["annotations"][0],
        annotated(path, updated_at="2026-11-26T10:00:00Z", was_cancelled=True)["annotations"][0],
    ]
    skipped = annotated(rows[1]["image_path"], was_cancelled=True)
    done = import_reviews([task, skipped, {"data": {"image_path": rows[2]["image_path"]}, "annotations": []}])
    assert done.code == 0, done.err
    assert "2 tasks not reviewed" in done.out
    [row] = reviewed(tmp_path)
    assert row["objects"] == [{"name": "new", "bbox": [100, 100, 200, 200]}]
    assert row["reviewed_by"] == "5"


def test_a_second_review_of_an_image_replaces_the_first_and_leaves_the_others(
    rows: Rows, write_output: Callable[..., Path], import_reviews: Import, tmp_path: Path
) -> None:
    write_output(*rows)
    first, second = (row["image_path"] for row in rows[:2])
    import_reviews([annotated(first, rectangle(0, 0, 10, 10, "a")), annotated(second, rectangle(0, 0, 10, 10, "b"))])
    kept = (tmp_path / "labeled.reviewed.jsonl").read_bytes().splitlines()[1]
    done = import_reviews([annotated(first, rectangle(0, 0, 20, 20, "c"))])
    assert "1 images reviewed, 1 of them in place of an earlier review" in done.out
    assert [row["objects"][0]["name"] for row in reviewed(tmp_path)] == ["b", "c"]
    assert (tmp_path / "labeled.reviewed.jsonl").read_bytes().splitlines()[0] == kept


def test_an_image_without_boxes_is_a_review_too(
    rows: Rows, write_output: Callable[..., Path], import_reviews: Import, tmp_path: Path
) -> None:
    write_output(*rows)
    assert import_reviews([annotated(rows[0]["image_path"])]).code == 0
    [row] = reviewed(tmp_path)
    assert row["objects"] == []
    assert row["annotations"] == {"rationale": "", "objects": []}


def test_json_min_is_read_too(
    rows: Rows, write_output: Callable[..., Path], import_reviews: Import, tmp_path: Path
) -> None:
    write_output(*rows)
    task = {"image": "x", "image_path": rows[0]["image_path"], "caption": "c", "id": 1, "annotator": 4,
            "label": [rectangle(10, 20, 30, 40, "cat")["value"] | {"original_width": 9, "original_height": 9}],
            "rationale": "why", "updated_at": "2026-11-25T10:05:00Z"}  # fmt: skip
    skipped = {"image_path": rows[1]["image_path"], "id": 2, "annotation_id": 8, "annotator": 4}
    assert import_reviews([task, skipped]).code == 0
    row, _ = reviewed(tmp_path)
    assert row["objects"] == [{"name": "cat", "bbox": [100, 200, 400, 600]}]
    assert row["annotations"]["rationale"] == "why"


@pytest.mark.parametrize(
    ("value", "size", "box"),
    [
        ({"x": 10, "y": 20, "width": 30, "height": 40}, None, [100, 200, 400, 600]),
        ({"x": -5, "y": 95, "width": 30, "height": 40}, None, [0, 950, 250, 1000]),
        ({"x": 50, "y": 50, "width": 10, "height": 20, "rotation": 90}, (200, 100), [400, 500, 500, 700]),
        ({"x": 50, "y": 50, "width": 10, "height": 10, "rotation": 180}, (7, 9), [400, 400, 500, 500]),
        ({"x": 100, "y": 0, "width": 10, "height": 10}, None, None),
        ({"x": 1, "y": 1, "width": 0, "height": 10}, None, None),
        ({"x": float("nan"), "y": 1, "width": 1, "height": 10}, None, None),
        ({"x": "1", "y": 1, "width": 1, "height": 10}, None, None),
        ({"x": 1, "y": 1, "width": 1}, None, None),
        ({"x": 1e300, "y": 1, "width": 1, "height": 1}, None, None),
        ({"x": 1, "y": 1, "width": 10, "height": 10, "rotation": None}, None, None),
    ],
)
def test_a_rectangle_is_the_box_around_it_within_the_image(
    value: dict[str, Any], size: tuple[int, int] | None, box: list[int] | None
) -> None:
    assert box_of(value, size) == box


@pytest.mark.parametrize(
    "hostile",
    [
        {"value": None}, None, 7, rectangle(1, 1, 5, 5), rectangle(1, 1, 5, 5, " "), rectangle(1, 1, 0, 5, "x"),
        rectangle(1, 1, 5, 5, "x", rectanglelabels=[None]), rectangle(1, 1, 5, 5, "x", rectanglelabels="x"),
        {"type": "textarea", "from_name": "rationale", "value": {"text": 7}}, {"type": [], "value": {}},
        {"type": "choices", "from_name": "c", "value": {"choices": ["a"]}},
    ],
)  # fmt: skip
def test_a_damaged_result_costs_only_itself(
    hostile: Any, rows: Rows, write_output: Callable[..., Path], import_reviews: Import, tmp_path: Path
) -> None:
    write_output(*rows)
    done = import_reviews([annotated(rows[0]["image_path"], hostile, rectangle(0, 0, 10, 10, "cat"))])
    [row] = reviewed(tmp_path)
    assert row["objects"] == [{"name": "cat", "bbox": [0, 0, 100, 100]}]
    is_box = isinstance(hostile, dict) and hostile.get("type") == "rectanglelabels"
    assert done.code == (1 if is_box else 0)
    assert ("left out: 1 boxes without a label, or outside the image" in done.out) == is_box


def test_images_that_the_output_does_not_have_are_named(
    rows: Rows, write_output: Callable[..., Path], import_reviews: Import, tmp_path: Path
) -> None:
    write_output(*rows)
    done = import_reviews([annotated("other.jpg"), annotated(rows[0]["image_path"], completed_by=None, updated_at=3)])
    assert done.code == 1
    assert "left out: 1 images that" in done.out
    assert "'other.jpg'" in done.out
    assert reviewed(tmp_path)[0]["reviewed_at"].startswith("2026"), "when it was made"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[{", "is not JSON"),
        ("[" * 9999, "is not JSON"),
        ('{"a": 1}', "is not a list of tasks: export the project from Label Studio as JSON or JSON-MIN"),
        ("[1]", "is not a list of tasks"),
        ("[]", "has no review of an image of"),
        ('[{"data": 3, "annotations": 4}, {"data": {"image_path": 7}}, {}]', "has no review of an image of"),
        (json.dumps([annotated("other.jpg")]), "has no review of an image of"),
    ],
)
def test_a_file_without_reviews_is_refused_and_nothing_is_written(
    text: str, message: str, rows: Rows, write_output: Callable[..., Path], import_reviews: Import, tmp_path: Path
) -> None:
    write_output(*rows)
    done = import_reviews(text)
    assert done.code == 2
    assert message in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "labeled.jsonl"]


def test_a_file_that_does_not_exist_is_refused(
    rows: Rows, write_output: Callable[..., Path], command: Callable[..., Done]
) -> None:
    done = command("review", "--output", write_output(*rows), "--from", "none.json")
    assert done.code == 2
    assert "--from 'none.json' does not exist: export the project from Label Studio as JSON" in done.err


def test_while_another_process_writes_the_corrected_rows_an_import_is_refused(
    rows: Rows, write_output: Callable[..., Path], import_reviews: Import
) -> None:
    target = reviewed_file(write_output(*rows))
    with exclusively(target, str(target)):
        done = import_reviews([annotated(rows[0]["image_path"])])
    assert done.code == 2
    assert f"{target} is being written by process" in done.err
    assert "run this again when that is done" in done.err
    assert not target.exists()


def test_a_place_that_cannot_be_locked_is_refused_without_a_traceback(
    rows: Rows, write_output: Callable[..., Path], import_reviews: Import
) -> None:
    target = reviewed_file(write_output(*rows))
    target.with_name(f".{unfinished_name(target.name)}.lock").mkdir()
    done = import_reviews([annotated(rows[0]["image_path"])])
    assert done.code == 2
    assert f"{target} cannot be written: Is a directory; choose a name in a folder" in done.err
