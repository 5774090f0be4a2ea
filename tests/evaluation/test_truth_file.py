"""Truth files of both forms, and files that are neither."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.evaluation.scenes import write_rows, write_scenes
from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.truth import Truth
from vllm_annotate.evaluation.truth_file import read_truth

LISTS = ("images", "annotations", "categories")
ROW: dict[str, Any] = {"image_path": "a.jpg", "objects": [{"name": "cat", "bbox": [1, 2, 300, 400]}]}
COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}],
    "categories": [{"id": 1, "name": "cat"}],
}


def read(path: Path) -> tuple[Truth, Names]:
    names = Names()
    return read_truth(path, names), names


def boxes(truth: Truth, names: Names, path: str) -> list[tuple[str, list[float]]]:
    """The names and x, y, width and height of an image."""
    found = truth.boxes.of(np.array([truth.index[path]]))
    return [(names.texts[name], box.tolist()) for name, box in zip(found.name, found.box, strict=True)]


def row_with(**fields: Any) -> str:
    return json.dumps(ROW | fields)


def row_with_box(box: Any) -> str:
    return row_with(objects=[{"name": "cat", "bbox": box}])


def coco_with(member: str, **fields: Any) -> str:
    return json.dumps(COCO | {member: [COCO[member][0] | fields]})


def coco_without(member: str, field: str) -> str:
    return json.dumps(COCO | {member: [{name: value for name, value in COCO[member][0].items() if name != field}]})


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_rows_are_read_plain_and_compressed(ending: str, bom: str, tmp_path: Path) -> None:
    text = f"{bom}{json.dumps(ROW)}\n\n{row_with(image_path='猫.jpg', objects=[])}\n"
    path = tmp_path / f"truth.jsonl{ending}"
    if ending == ".zst":
        pl.DataFrame({"row": text.splitlines()}).write_csv(
            path, include_header=False, quote_style="never", compression="zstd"
        )
    else:
        path.write_bytes(gzip.compress(text.encode()) if ending else text.encode())
    truth, names = read(path)
    assert truth.kind == "rows"
    assert boxes(truth, names, "a.jpg") == [("cat", [1, 2, 299, 398])]
    assert boxes(truth, names, "猫.jpg") == []


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("order", [["info", *LISTS], ["annotations", "categories", "images"]])
def test_coco_is_recognised_in_any_order_and_layout(
    order: list[str], ending: str, indent: int | None, tmp_path: Path
) -> None:
    whole = COCO | {"info": {"year": 2026, "nested": [[1, "]"], {}]}}
    content = json.dumps({name: whole[name] for name in order}, indent=indent).encode()
    path = tmp_path / f"truth.json{ending}"
    path.write_bytes(gzip.compress(content) if ending else b"\xef\xbb\xbf" + content)
    truth, names = read(path)
    assert truth.kind == "coco"
    assert boxes(truth, names, "a.jpg") == [("cat", [1, 2, 30, 40])]
    assert truth.boxes.size.tolist() == [[100, 50]]


def test_a_coco_file_larger_than_a_piece_is_read_to_its_end(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg", "note": "图" * 50} for number in range(12_000)]
    annotations = [
        {"image_id": number, "category_id": 1, "bbox": [number, 0, 1.5, 2], "iscrowd": number % 2}
        for number in range(12_000)
    ]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(COCO | {"images": images, "annotations": annotations}, ensure_ascii=False))
    assert path.stat().st_size > 2 << 20
    truth, names = read(path)
    assert len(truth.index) == 12_000
    assert boxes(truth, names, "11999.jpg") == [("cat", [11999, 0, 1.5, 2])]
    assert truth.boxes.crowd.sum() == 6000


def test_only_reviewed_rows_are_truth_where_there_are_any_and_the_last_of_an_image_counts(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"reviewed": True, "objects": []}, ROW | {"image_path": "b.jpg"}, ROW]
    truth, names = read(write_rows(tmp_path / "truth.jsonl", rows))
    assert list(truth.index) == ["a.jpg"]
    assert boxes(truth, names, "a.jpg") == []
    assert truth.notes == [
        "further rows of an image in the truth, of which the last one counts, or the last reviewed one: 2",
        "images of the truth that are not reviewed, and so are no truth: 1",
    ]


def test_a_row_without_an_annotation_is_no_truth_unless_it_is_reviewed(tmp_path: Path) -> None:
    failed = {"image_path": "b.jpg", "objects": [], "annotations_error": True}
    path = tmp_path / "truth.jsonl"
    truth, _ = read(write_rows(path, [ROW, failed]))
    assert list(truth.index) == ["a.jpg"]
    assert truth.notes == ["rows of the truth without an annotation, which are left out: 1"]
    assert list(read(write_rows(path, [ROW, failed | {"reviewed": True}]))[0].index) == ["b.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (row_with(image_path=""), "line 1 of .* has no image_path"),
        (row_with(image_path=None), "line 1 of .* has no image_path"),
        (row_with(objects=None), "line 1 of .* has no list of objects"),
        (row_with(objects=[{"bbox": [1, 2, 3, 4]}]), "object 1 in line 1 of .* has no name"),
        (row_with(objects=["cat"]), "object 1 in line 1 of .* has no name"),
        (row_with(objects=[{"name": "cat"}] * 2001), "2,001 objects: at most 2,000"),
        (row_with_box(None), r"bbox None: write \[x1, y1, x2, y2\]"),
        (row_with_box([1, 2, 3]), r"bbox \[1, 2, 3\]: write"),
        (row_with_box([1, 2, 3, "4"]), "four numbers"),
        (row_with_box([1, 2, 3, True]), "four numbers"),
        (row_with_box([1, 2, 3, float("nan")]), "must be finite"),
        (row_with_box([1, 2, 3, 1e400]), "must be finite"),
        (row_with_box([300, 2, 1, 400]), "order its corners"),
        (row_with_box([1, 2, 1, 400]), "order its corners"),
        (row_with_box([-5, 2, 1, 400]), "coordinates are 0–1000 .* or give COCO"),
        (row_with_box([1, 2, 1920, 1080]), "divide pixels by width"),
        (row_with_box([0.1, 0.2, 0.3, 1.0]), "no box with a coordinate over 1: multiply by 1000"),
        (json.dumps(ROW) + '\n{"image_path": "b.j', "line 2 of .* is broken off or not valid JSON"),
        (json.dumps([ROW]), "line 1 of .* is a JSON array"),
        ("[\n" + json.dumps(ROW) + "\n]", "line 1 of .* is a JSON array"),
        ("image_path,name,x1\na.jpg,cat,1\n", r"is not JSON \('image_path,name,x1'\)"),
        ("\n\n", "has no rows with an annotation"),
        (row_with(objects=[], annotations_error=True), "has no rows with an annotation"),
        ("", "is empty"),
        ("null", "is not JSON"),
        (b"\xff\xfe{\x00", "is not JSON"),
        (json.dumps(COCO)[:-30], "is broken off or not valid JSON at"),
        (json.dumps(COCO)[:-1], "is broken off or not valid JSON at its end"),
        (json.dumps(COCO, indent=1)[:-1], "is broken off or not valid JSON at its end"),
        (json.dumps({"images": COCO["images"]}), "has no annotations and no categories"),
        (json.dumps(COCO | {"images": []}), "has no images"),
        (json.dumps(COCO | {"images": {}}), "images that are not a list"),
        (json.dumps(COCO | {"annotations": [7]}), "annotations of .*: 7 is not an object"),
        (coco_with("images", id=2), "annotation of image 1, which is not in its images"),
        (coco_with("categories", id=2), "annotation of category 1, which is not in its categories"),
        (coco_with("images", id=[1]), "id that is not a number"),
        (coco_with("images", width=0), "both must be numbers over 0"),
        (coco_with("images", width="100"), "both must be numbers over 0"),
        (json.dumps(COCO | {"images": COCO["images"] * 2}), "repeats an id or a file_name"),
        (json.dumps(COCO | {"categories": COCO["categories"] * 2}), "repeats an id"),
        (coco_with("categories", name=None), "has no name"),
        (coco_without("images", "file_name"), "has no file_name"),
        (coco_without("annotations", "bbox"), "has no bbox"),
        (coco_without("annotations", "image_id"), "has no image_id"),
        (coco_with("annotations", bbox=[1, 2, 3, float("nan")]), "four finite numbers"),
        (coco_with("annotations", bbox=[1, 2, 3, float("inf")]), "four finite numbers"),
        (coco_with("annotations", bbox=[1, 2, 3]), "four finite numbers"),
        (coco_with("annotations", bbox=[1, 2, -3, 4]), "must not be negative"),
        (json.dumps(COCO | {"annotations": COCO["annotations"] * 2001}), "2,001 boxes: at most 2,000"),
        ('{"images": ' + "[" * 100_000, "is broken off"),
        ("{" + '"' * 99, "is broken off or not valid JSON"),
        (gzip.compress(json.dumps(COCO).encode() * 99)[:-20], "truncated or corrupt"),
        (b"(\xb5/\xfd not zstd", "truncated or corrupt"),
        (gzip.compress(json.dumps(ROW).encode() * 99)[:-20], "truncated or corrupt"),
    ],
)
def test_another_file_is_refused_with_what_it_should_be(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message) as refused:
        read(path)
    assert f"--truth '{path}'" in str(refused.value)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize(
    ("path", "message"),
    [("none.json", "does not exist"), (".", "is not a file"), ("s3://bucket/truth.json", "is a URL")],
)
def test_a_path_without_a_file_is_refused(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        read(Path(path))


def test_flat_boxes_which_coco_itself_has_are_told(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    path.write_text(coco_with("annotations", bbox=[1, 2, 30, 0]))
    truth, _ = read(path)
    assert truth.notes == ["boxes of the truth without width or height, which any answer misses: 1"]


def test_coordinates_that_rounding_moved_over_the_edge_are_read(tmp_path: Path) -> None:
    path = tmp_path / "truth.jsonl"
    path.write_text(row_with_box([-1e-13, 2, 1000.0000000000001, 1000]))
    assert len(read(path)[0].boxes.box) == 1


def test_annotations_of_one_image_keep_their_order(tmp_path: Path) -> None:
    coco = write_scenes(tmp_path, 20)
    truth, names = read(tmp_path / "truth.json")
    for image in coco["images"]:
        expected = [one["bbox"] for one in coco["annotations"] if one["image_id"] == image["id"]]
        assert [box for _, box in boxes(truth, names, image["file_name"])] == expected
