"""ODVG, read as the trainers do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import lines_of
from tests.export.conftest import Done
from vllm_annotate.export.odvg import grounding_of
from vllm_annotate.export.rows import Labeled, Named

Rows = list[dict[str, Any]]


def mmdetection(record: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """The text that MMDetection trains each box on: it takes tokens_positive from the lowered caption."""
    text = record["grounding"]["caption"].lower().strip()
    return [
        (" ".join(text[start:end] for start, end in region["tokens_positive"]), region["bbox"])
        for region in record["grounding"]["regions"]
    ]


def test_every_box_is_trained_on_its_name(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    assert export(write_output(*rows), "odvg", tmp_path / "odvg.jsonl").code == 0
    records = lines_of(tmp_path / "odvg.jsonl")
    assert [(each["filename"], each["width"], each["height"]) for each in records] == [
        (row["image_path"], row["width"], row["height"]) for row in rows
    ]
    for row, record in zip(rows, records, strict=True):
        assert record["grounding"]["caption"].startswith(row["caption"])
        for item, region, (text, bbox) in zip(
            row["objects"], record["grounding"]["regions"], mmdetection(record), strict=True
        ):
            sides = (row["width"], row["height"]) * 2
            expected = [value * side / 1000 for value, side in zip(item["bbox"], sides, strict=True)]
            assert bbox == pytest.approx(expected, abs=0.01)
            assert region["phrase"] == " ".join(item["name"].split())
            assert text == region["phrase"].lower()


@pytest.mark.parametrize(
    ("caption", "names", "expected"),
    [
        ("A Cat on a sofa", ["cat", "sofa", "cat"], "A Cat on a sofa"),
        ("A cat on a sofa", ["lamp", "dog"], "A cat on a sofa. lamp. dog."),
        ("catalogue and cat", ["cat"], "catalogue and cat"),
        ("一只猫在沙发上。", ["猫", "灯"], "一只猫在沙发上。 灯."),
        ("a catalogue", ["cat"], "a catalogue. cat."),
        ("", ["cat"], "cat."),
        ("  two\nlines ", ["two lines"], "two lines"),
        ("İstanbul: a cat", ["cat", "İstanbul"], "İstanbul: a cat"),
    ],
)
def test_the_caption_has_every_name_once(caption: str, names: list[str], expected: str) -> None:
    objects = tuple(Named(name, (0, 0, 1000, 1000)) for name in names)
    row = Labeled("a.jpg", caption, "", objects, (10, 10), flags=(), invalid=(), text="")
    record = grounding_of(row)
    assert record["grounding"]["caption"] == expected
    assert [text for text, _ in mmdetection(record)] == [name.lower() for name in names]
    if caption == "catalogue and cat":
        assert record["grounding"]["regions"][0]["tokens_positive"] == [[14, 17]]
