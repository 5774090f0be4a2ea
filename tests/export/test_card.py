"""The dataset card."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from tests.export.conftest import Done

Rows = list[dict[str, Any]]
PROMPT = "the prompt of a customer"
MAKER = {
    "recipe": "b252a1a9592d",
    "model": "Qwen|VL",
    "model_revision": "0" * 40,
    "vllm": ["0.32.0"],
    "first": "2026-11-25T10:00:00+00:00",
    "last": "2026-11-26T10:00:00+00:00",
    "settings": {"system_prompt": PROMPT, "temperature": 0.0, "family": "qwen2.5-vl", "max_visual_tokens": 1280},
}
REPORT = {
    "made_by": [MAKER],
    "quality": {"answers": 7, "objects": 6, "parse_stages": {"tags": 5}, "flags": {"swapped": 4}},  # of the last run
    "output": {
        "images": 12345,
        "quality": {"answers": 12345, "objects": 3, "parse_stages": {"json": 9}, "flags": {"near_duplicate": 2}},
    },
}  # fmt: skip


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_there_is_and_who_made_it(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "labeled.report.json").write_text(json.dumps(REPORT))
    card = tmp_path / "README.md"
    output = write_output(*rows, rows[0] | {"image_path": "x", "annotations_error": True})
    done = export(output, "coco", tmp_path / "boxes.json", "--card", card)
    assert done.code == 0, done.err
    text = card.read_text()
    objects = sum(len(row["objects"]) for row in rows)
    assert f"100 images with {objects} named boxes" in text
    assert r"| Qwen\|VL | 0000" in text
    shown = text.replace("\\", "")
    assert "b252a1a9592d: own prompts, family qwen2.5-vl, temperature 0.0, up to 1280 visual tokens" in shown
    assert "| 2026-11-25 | 2026-11-26 |" in shown
    assert "Left out: images left out: 1 no annotation." in shown
    assert "Of all answers, before anything was left out:" in shown
    assert "| answers | 12,345 |" in shown
    assert "| flag near_duplicate | 2 |" in shown
    assert "swapped" not in shown, "the last run's"
    assert r"🐈 \<b\>\&amp\;" in text
    assert PROMPT not in text
    assert "configs" not in front_matter(text)


@pytest.mark.parametrize(
    ("output", "said", "answers"),
    [
        ({"images": 900, "quality": {"answers": 900}}, "Of all answers, before", "900"),
        ({"images": 2_000_000, "quality": {"answers": 99_000}}, "Of a sample of 99,000 of 2,000,000 answers", "99,000"),
        (None, "Of the answers of the last run, before", "7"),
    ],
)
def test_the_card_says_which_answers_the_quality_is_of(
    output: Any, said: str, answers: str, rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done],
    tmp_path: Path,
) -> None:  # fmt: skip
    report = {"quality": {"answers": 7}} | ({"output": output} if output else {})
    (tmp_path / "labeled.report.json").write_text(json.dumps(report))
    done = export(write_output(*rows), "coco", tmp_path / "boxes.json", "--card", tmp_path / "README.md")
    assert done.code == 0, done.err
    shown = (tmp_path / "README.md").read_text().replace("\\", "")
    assert said in shown
    assert f"| answers | {answers} |" in shown


def test_no_text_of_others_becomes_a_link_or_markup_in_the_card(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    evil = "https://evil.example a@evil.example www.evil.example <img src=x> [a](b) | `c` \x1b]0;x\n# d"
    maker = MAKER | {"model": evil, "vllm": [evil]}
    (tmp_path / "labeled.report.json").write_text(json.dumps({"made_by": [maker]}))
    odd = rows[0] | {"objects": [{"name": evil, "bbox": [0, 0, 9, 9]}]}
    done = export(write_output(odd), "coco", tmp_path / "boxes.json", "--card", tmp_path / "README.md")
    assert done.code == 0, done.err
    text = (tmp_path / "README.md").read_text()
    assert text.count("evil") == 9, "all of it is shown"
    active = re.sub(r"\\.", "", text)
    for markup in ("://", "@evil", "www.", "<img", "[a]", "| `", "\x1b", "\n# d"):
        assert markup not in active, markup


def test_hugging_face_loads_the_folder_by_its_card(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    splits = "train=0.6,val-1=0.4,none=0"
    done = export(
        write_output(*rows), "parquet", hub / "data" / "d.parquet", "--split", splits, "--card", hub / "README.md"
    )
    assert done.code == 0, done.err
    found = datasets.load_dataset(str(hub), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "val_1"}
    assert sum(len(split) for split in found.values()) == len(rows)


@pytest.mark.parametrize(
    "report",
    ["", "[]", "{", '{"made_by": 7, "quality": [1]}', '{"made_by": [{"recipe": "r", "first": "", "last": ""}]}',
     '{"made_by": [{"recipe": "r", "first": "", "last": "", "settings": 3, "vllm": 4}], "quality": {"flags": 1}}',
     '{"output": 7, "quality": 3}', '{"output": {"images": "x", "quality": 4}}',
     '{"output": {"quality": {"answers": []}}}'],
)  # fmt: skip
def test_a_report_that_is_damaged_or_of_another_kind_costs_its_figures_alone(
    report: str, rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "labeled.report.json").write_text(report)
    done = export(write_output(*rows), "parquet", tmp_path / "d.parquet", "--card", tmp_path / "README.md")
    assert done.code == 0, done.err
    text = (tmp_path / "README.md").read_text()
    assert "100 images with" in text
    assert front_matter(text)["configs"][0]["data_files"] == [{"split": "train", "path": "d.parquet"}]


def test_a_card_that_exists_is_not_overwritten_and_nothing_is_exported(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    done = export(write_output(*rows), "coco", tmp_path / "boxes.json", "--card", tmp_path / "README.md")
    assert done.code == 2
    assert "--card" in done.err
    assert not (tmp_path / "boxes.json").exists()
    done = export(write_output(*rows), "coco", tmp_path / "boxes.json", "--card", tmp_path / "boxes.json")
    assert done.code == 2
    assert not (tmp_path / "boxes.json").exists()
