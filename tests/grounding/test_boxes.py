"""Notations of boxes."""

from typing import Any

import pytest

from vllm_annotate.grounding.boxes import RawBox, raw_boxes

BOX, OTHER = RawBox([10, 20, 30, 40]), RawBox([50, 60, 70, 80])


@pytest.mark.parametrize(
    ("value", "boxes"),
    [
        ([10, 20, 30, 40], [BOX]),
        (["10", " 20", "30.0", "40"], [BOX]),
        ([[10, 20], [30, 40]], [BOX]),
        (["(10, 20)", "(30, 40)"], [BOX]),
        ([[10, 20, 30, 40]], [BOX]),
        ([[10, 20, 30, 40], [50, 60, 70, 80]], [BOX, OTHER]),
        ([[[10, 20], [30, 40]], [[50, 60], [70, 80]]], [BOX, OTHER]),
        ([[10, 20, 30, 40], [50, 60]], [BOX, None]),
        ("10, 20, 30, 40", [BOX]),
        ("10 20 30 40", [BOX]),
        ("（10，20），（30，40）", [BOX]),
        ("[10, 20, 30, 40], [50, 60, 70, 80]", [BOX, OTHER]),
        ("<|box_start|>(10,20),(30,40)<|box_end|>", [BOX]),
        ({"x1": 10, "y1": 20, "x2": 30, "y2": 40}, [RawBox([10, 20, 30, 40], by_name=True)]),
        ({"Left": 10, "Top": 20, "Right": 30, "Bottom": 40}, [RawBox([10, 20, 30, 40], by_name=True)]),
        ({"x": 10, "y": 20, "w": 20, "h": 20}, [RawBox([10, 20, 30, 40], by_name=True, sized=True)]),
        ({"左上角": [10, 20], "右下角": [30, 40]}, [BOX]),
    ],
)
def test_a_box_is_read_in_every_notation(value: Any, boxes: list[RawBox | None]) -> None:
    assert raw_boxes(value) == boxes


@pytest.mark.parametrize(
    "value",
    [
        None, 3, [], [10, 20, 30], [10, 20, 30, 40, 50], [10, 20, 30, True], [10, 20, 30, float("nan")],
        [10, 20, 30, 1e9], "10, 20, 30", "10, 20, 30, 40, 50", "10px 20px 30px 40px", "10%, 20%, 30%, 40%",
        "10-20-30-40", "the cat", ["cat", [10, 20, 30, 40]], [[[[[10, 20, 30, 40]]]]], {"x1": 10, "y1": 20, "x2": 30},
        [[10, 20], [30, 20], [30, 40], [10, 40]],
    ],
)  # fmt: skip
def test_anything_else_is_no_box(value: Any) -> None:
    assert not any(raw_boxes(value))
