"""The sample of an audit: seeded, nested, and of answered rows alone."""

from pathlib import Path
from typing import Any

import polars as pl

from tests.evaluation.scenes import write_rows
from vllm_annotate.evaluation.audit_sample import draw_sample
from vllm_annotate.inputs.selection import Selection

PATHS = [f"{number}.jpg" for number in range(50)]


def paths(output: Path, count: int, seed: int = 0) -> list[str]:
    return [row.image_path for row in draw_sample(output, count, seed).rows]


def test_it_is_the_sample_that_a_run_of_this_seed_would_take(tmp_path: Path) -> None:
    output = write_rows(tmp_path / "labeled.jsonl", [{"image_path": path, "objects": []} for path in PATHS])
    frame = pl.LazyFrame({"line": range(50), "image_path": PATHS})
    for seed in (0, 1):
        assert set(paths(output, 9, seed)) == set(Selection(0, 9, seed).of(frame).collect()["image_path"])
    assert paths(output, 9) == paths(output, 20)[:9], "a larger sample contains a smaller one"
    assert len(paths(output, 99)) == 50


def test_of_several_rows_of_an_image_the_first_counts_and_rows_without_annotation_are_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image_path": path, "objects": [], "caption": caption} for caption in ("one", "two") for path in PATHS[:5]
    ]
    rows.append({"image_path": "error.jpg", "objects": [], "annotations_error": True})
    sample = draw_sample(write_rows(tmp_path / "labeled.jsonl", rows), 10, 0)
    assert [row.caption for row in sample.rows] == ["one"] * 5
    assert sample.unparsed == 1
