"""Rows of any content: every command comes to its end, and its files can be read."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pycocotools.coco import COCO

from tests.conftest import lines_of
from tests.export.conftest import Done
from vllm_annotate.export.export import FORMATS

pytestmark = pytest.mark.fuzz
VALUES: list[Any] = [
    None, True, False, 0, -1, 1000, 1001, 3.7, 1e308, float("nan"), float("inf"), 10**30, "", "\0", "猫", "\ud800",
    "<bbox>", "x" * 5000, [], {}, [1], [1, 2, 3, 4], {"a": 1}, ["swapped"], [{"name": "x", "bbox": [0, 0, 10, 10]}],
]  # fmt: skip
NAMES = ("cat", "Cat", "", None, 3, "\ud800x", "a\tb", '"<&>', "\uffff")
MORE = ("flags", "agreement", "reviewed", "annotations_error", "license", "rationale", "name ", "")


def anything(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.6 or depth > 3:
        return rng.choice(VALUES)
    inner = [anything(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return inner if kind < 0.8 else {rng.choice(("name", "bbox", "objects", "名", "")): value for value in inner}


def line(number: int, rng: random.Random) -> str:
    """A row as a run might have written it, if some fields were not something else; a few are torn."""
    objects = [
        {"name": rng.choice(NAMES), "bbox": rng.choice([[0, 0, 500, 500], [1, 2, 3, 4], anything(rng)])}
        for _ in range(3)
    ]
    row = {
        "image_path": rng.choice([f"{number}.jpg", f"{number % 7}.jpg", anything(rng)]),
        "caption": anything(rng),
        "annotations": rng.choice([anything(rng), {"rationale": anything(rng), "objects": anything(rng)}]),
        "objects": rng.choice([objects, anything(rng)]),
        "width": rng.choice([640, anything(rng)]),
        "height": rng.choice([480, anything(rng)]),
    } | {name: anything(rng) for name in MORE if rng.random() < 0.2}
    text = json.dumps(row)
    return text if rng.random() < 0.95 else text[: rng.randrange(len(text))]


def check(form: str, path: Path) -> None:
    """Reads an export as its users do."""
    if form == "coco":
        COCO(path)
    elif form == "parquet":
        assert len(pl.read_parquet(path))
    else:
        assert json.loads(path.read_text()) if form == "label-studio" else lines_of(path)


def test_every_export_and_review_ends_in_files_or_a_refusal(
    write_output: Callable[..., Path],
    export: Callable[..., Done],
    command: Callable[..., Done],
    tmp_path: Path,
    rng: random.Random,
    fuzzing: bool,
) -> None:
    for round_ in range(200 if fuzzing else 8):
        folder = tmp_path / str(round_)
        folder.mkdir()
        output = write_output(*(line(number, rng) for number in range(30)), end="")
        for form in FORMATS:
            done = export(output, form, folder / form, "--card", folder / f"{form}.md")
            assert done.code in (0, 1) or "nothing to export" in done.err, done.err
            if done.code != 2:
                check(form, folder / form)
        if command("review", "--output", output, "--to", folder / "tasks.json").code == 2:
            continue
        tasks = json.loads((folder / "tasks.json").read_text())
        for task in tasks:
            accepted = rng.choice([task["predictions"][0]["result"], anything(rng)])
            people = {name: anything(rng) for name in ("completed_by", "updated_at", "was_cancelled")}
            task["annotations"] = [people | {"result": accepted}]
        (folder / "reviewed.json").write_text(json.dumps(tasks))
        done = command("review", "--output", output, "--from", folder / "reviewed.json")
        assert done.code in (0, 1) or "has no review" in done.err, done.err
        lines_of(tmp_path / "labeled.reviewed.jsonl")
