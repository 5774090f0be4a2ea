"""ms-swift, read as its templates do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import lines_of
from tests.export.conftest import Done

Rows = list[dict[str, Any]]


def filled(record: dict[str, Any], width: int, height: int) -> str:
    """The answer with names and boxes in thousandths, as ms-swift fills it in for Qwen2-VL and others."""
    names, boxes = iter(record["objects"]["ref"]), iter(record["objects"]["bbox"])
    sides = (width, height) * 2

    def fill(match: "re.Match[str]") -> str:
        if match[0] == "<ref-object>":
            return str(next(names))
        return str([round(value / side * 1000) for value, side in zip(next(boxes), sides, strict=True)])

    text = re.sub("<ref-object>|<bbox>", fill, record["messages"][1]["content"])
    assert not [*names, *boxes], "as many as placeholders"
    return text


def test_the_conversation_ends_with_every_name_and_box(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    for row in rows:
        row["width"] += 100  # below, two thousandths can be one hundredth of a pixel
    (tmp_path / "images").mkdir()
    done = export(write_output(*rows), "ms-swift", tmp_path / "s.jsonl", "--image-root", tmp_path / "images")
    assert done.code == 0, done.err
    for row, record in zip(rows, lines_of(tmp_path / "s.jsonl"), strict=True):
        assert record["images"] == [str(tmp_path / "images" / row["image_path"])]
        assert record["objects"]["bbox_type"] == "real"
        question, answer = record["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert question["content"].count("<image>") == 1
        assert row["caption"] in question["content"]
        if row["height"] >= 20:
            objects = [" ".join(item["name"].split()) + str(item["bbox"]) for item in row["objects"]]
            expected = "\n".join([row["annotations"]["rationale"], *objects])
            assert filled(record, row["width"], row["height"]) == expected


@pytest.mark.parametrize("field", ["caption", "rationale", "name"])
def test_placeholders_in_texts_take_no_image_name_or_box(
    field: str, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    hostile = "<image><bbox><ref-object><video>"
    objects = [{"name": hostile if field == "name" else "cat", "bbox": [0, 0, 1000, 1000]}]
    row = {
        "image_path": "a.jpg", "width": 100, "height": 100, "objects": objects,
        "caption": hostile if field == "caption" else "c",
        "annotations": {"rationale": hostile if field == "rationale" else "r", "objects": objects},
    }  # fmt: skip
    assert export(write_output(row), "ms-swift", tmp_path / "s.jsonl").code == 0
    [record] = lines_of(tmp_path / "s.jsonl")
    texts = "".join(message["content"] for message in record["messages"])
    assert [texts.count(f"<{name}>") for name in ("image", "ref-object", "bbox", "video")] == [1, 1, 1, 0]
    assert "<bbox>" not in filled(record, 100, 100)
    assert record["images"] == ["a.jpg"]
