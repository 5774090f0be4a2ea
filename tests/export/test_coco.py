"""COCO, as pycocotools reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from tests.export.conftest import Done

Rows = list[dict[str, Any]]


def test_pycocotools_reads_every_image_and_box(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    done = export(write_output(*rows), "coco", tmp_path / "boxes.json")
    assert done.code == 0, done.err
    coco = COCO(tmp_path / "boxes.json")
    assert len(set(coco.getImgIds())) == len(rows)
    assert len(set(coco.getAnnIds())) == sum(len(row["objects"]) for row in rows)
    for row, image in zip(rows, coco.loadImgs(coco.getImgIds()), strict=True):
        assert (image["file_name"], image["width"], image["height"]) == (
            row["image_path"], row["width"], row["height"],
        )  # fmt: skip
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        for item, annotation in zip(row["objects"], annotations, strict=True):
            left, top, width, height = annotation["bbox"]
            sides = (row["width"], row["height"]) * 2
            expected = [value * side / 1000 for value, side in zip(item["bbox"], sides, strict=True)]
            assert [left, top, left + width, top + height] == pytest.approx(expected, abs=0.02)
            assert annotation["area"] == pytest.approx(width * height, abs=0.01)
            assert annotation["iscrowd"] == 0
    assert coco.loadRes([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0}]).getAnnIds() == [1]


def test_categories_are_the_names_that_count_as_the_same_most_frequent_first(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    names = ["dog", "Cat", "CAT", "Cat", "ｃａｔ", " cat ", "Ante", "ante", "straße", "STRASSE", "ﬁsh", "fish", "fish"]
    rows = [
        {"image_path": f"{number}.jpg", "objects": [{"name": name, "bbox": [0, 0, 9, 9]}], "width": 100, "height": 100}
        for number, name in enumerate(names)
    ]
    assert export(write_output(*rows), "coco", tmp_path / "boxes.json").code == 0
    document = json.loads((tmp_path / "boxes.json").read_text())
    assert [(category["id"], category["name"]) for category in document["categories"]] == [
        (1, "Cat"), (2, "fish"), (3, "Ante"), (4, "STRASSE"), (5, "dog"),
    ]  # fmt: skip
    ids = [annotation["category_id"] for annotation in document["annotations"]]
    assert ids == [5, 1, 1, 1, 1, 1, 3, 3, 4, 4, 2, 2, 2]
