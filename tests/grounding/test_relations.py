"""Statements that boxes contradict are found, and hardly any other."""

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_annotate.grounding.box_checks import Object
from vllm_annotate.grounding.relations import MOST_NAMES, contradicts_boxes

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("relations.jsonl").read_text(encoding="utf-8").splitlines()
]
CUP, PLATE = Object(name="cup", bbox=[700, 400, 900, 600]), Object(name="plate", bbox=[50, 400, 250, 600])


def scored(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Precision and recall."""
    flagged = [row for row in rows if contradicts_boxes(row["rationale"], row["objects"])]
    right = [row for row in flagged if row["contradicted"]]
    return len(right) / len(flagged), len(right) / sum(row["contradicted"] for row in rows)


@pytest.mark.parametrize("chinese", [False, True])
def test_of_two_hundred_sentences_hardly_any_is_flagged_wrongly_and_most_contradictions_are(chinese: bool) -> None:
    rows = [row for row in ROWS if row["rationale"].isascii() != chinese]
    precision, recall = scored(rows)
    assert len(rows) >= 100
    assert precision >= 0.95, precision
    assert recall >= 0.8, recall


def test_sentences_are_flagged_among_others_too() -> None:
    english = "A wide shot of a kitchen. {} Warm light falls in, and a window stands open."
    chinese = "这是一间厨房的全景。{}光线温暖,窗户开着。"
    rows = [
        row | {"rationale": (english if row["rationale"].isascii() else chinese).format(row["rationale"])}
        for row in ROWS
    ]
    precision, recall = scored(rows)
    assert precision >= 0.95, precision
    assert recall >= 0.8, recall


@pytest.mark.parametrize("row", [row for row in ROWS if row["contradicted"]], ids=lambda row: row["rationale"])
def test_boxes_that_overlap_or_lie_close_contradict_nothing(row: dict[str, Any]) -> None:
    beside = [item | {"bbox": [400 + 5 * at, 400, 600 + 5 * at, 600]} for at, item in enumerate(row["objects"])]
    assert not contradicts_boxes(row["rationale"], beside)


def test_a_name_in_capitals_or_with_an_article_is_the_same() -> None:
    named = [Object(name="The Cup", bbox=CUP["bbox"]), Object(name="a plate", bbox=PLATE["bbox"])]
    assert contradicts_boxes("The CUP is left of the plate.", named)


@pytest.mark.parametrize(
    "text", ["", "left", "left of", "the cup is left of", "在左边", "左边是", "\n", "of the left of " * 900]
)
def test_no_text_breaks_it(text: str) -> None:
    for objects in ([], [CUP, PLATE], [Object(name="", bbox=[0, 0, 9, 9])], [Object(name="左", bbox=[0, 0, 9, 9])]):
        assert not contradicts_boxes(text, objects)


def test_a_crowd_is_not_read() -> None:
    crowd = [CUP, PLATE, *(Object(name=f"n{number}", bbox=[0, 0, 9, 9]) for number in range(MOST_NAMES))]
    assert not contradicts_boxes("The cup is left of the plate.", crowd)
