"""Parquet, as Hugging Face's datasets read it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest

from tests.export.conftest import Done, write_audit
from vllm_annotate.export.columns import OURS
from vllm_annotate.export.parquet import GROUP_ROWS

Rows = list[dict[str, Any]]
BOX = {"name": "cat", "bbox": [0, 0, 500, 500]}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Reads Parquet files as a user of the library does."""

    def read(**files: Path) -> Any:
        return datasets.load_dataset(
            "parquet", data_files={name: str(path) for name, path in files.items()}, cache_dir=str(tmp_path / "cache")
        )

    return read


def test_datasets_reads_every_row_with_its_types(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], load: Callable[..., Any], tmp_path: Path
) -> None:
    rows[0] |= {"flags": ["swapped"]}
    write_audit(tmp_path, {rows[0]["image_path"]: 0.5})
    del rows[1]["width"]
    done = export(write_output(*rows), "parquet", tmp_path / "d.parquet")
    assert done.code == 0, done.err
    table = load(train=tmp_path / "d.parquet")["train"]
    box = table.features["objects"].feature["bbox"]
    assert (box.feature.dtype, box.length) == ("int16", 4)
    assert [table.features[name].dtype for name in ("width", "height", "agreement")] == ["int32", "int32", "float64"]
    for row, read in zip(rows, table, strict=True):
        objects = [{"name": " ".join(item["name"].split()), "bbox": item["bbox"]} for item in row["objects"]]
        assert read == {
            "image_path": row["image_path"], "caption": row["caption"], "rationale": row["annotations"]["rationale"],
            "objects": objects, "width": row.get("width"), "height": row["height"] if "width" in row else None,
            "flags": row.get("flags", []), "agreement": 0.5 if row is rows[0] else None,
        }  # fmt: skip


COLUMNS = [
    (["a", "b"], "string", ["a", "b"]),
    ([1, -2], "int64", [1, -2]),
    ([1, 2.5], "double", [1.0, 2.5]),
    ([True, None], "bool", [True, None]),
    ([None, None], "string", [None, None]),
    ([1, "a"], "string", ["1", '"a"']),
    ([True, 1], "string", ["true", "1"]),
    ([[1, 2], {"a": None}], "string", ["[1, 2]", '{"a": null}']),
    ([2**70, 1], "string", [str(2**70), "1"]),
    (["\u202e", "\x00"], "string", ["\u202e", "\x00"]),
]


OTHERS = ["column", "rationale", "agreement", "agreement ", "reviewed", "reviewed_by", "名", "a.b", ""]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("values", "dtype", "expected"), COLUMNS)
def test_other_columns_keep_type_and_value_or_are_json(
    name: str,
    values: list[Any],
    dtype: str,
    expected: list[Any],
    write_output: Callable[..., Path],
    export: Callable[..., Done],
    tmp_path: Path,
) -> None:
    sound = {"image_path": "c.jpg", "vlm_output": "…", "objects": [BOX]}
    rows = [sound | {"image_path": f"{n}.jpg", name: value} for n, value in enumerate(values)]
    done = export(write_output(*rows, sound), "parquet", tmp_path / "d.parquet")
    assert done.code == 0, done.err
    column = pl.read_parquet(tmp_path / "d.parquet")[f"input_{name}" if name in OURS else name]
    assert column.to_list() == [*expected, None]
    assert column.dtype == {"string": pl.String, "int64": pl.Int64, "double": pl.Float64, "bool": pl.Boolean}[dtype]


@pytest.mark.parametrize("written", ["1e400", "NaN", "-Infinity", "1" * 400, "1E-999", "12345678901234567890"])
def test_numbers_that_no_type_holds_are_json_as_written(
    written: str, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    line = json.dumps({"image_path": "a.jpg", "objects": [BOX]})[:-1] + f', "x": {written}, "y": 1.5, "input_y": 1}}'
    done = export(write_output(line), "parquet", tmp_path / "d.parquet")
    assert done.code == 0, done.err
    assert pl.read_parquet(tmp_path / "d.parquet")["x"].to_list() == [written]


def test_splits_load_as_splits_also_an_empty_one(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], load: Callable[..., Any], tmp_path: Path
) -> None:
    export(write_output(*rows), "parquet", tmp_path / "d.parquet", "--split", "train=0.8,test=0.2,none=0")
    files = {name: tmp_path / f"d.{name}.parquet" for name in ("train", "test")}
    found = load(**files)
    assert sum(len(split) for split in found.values()) == len(rows)
    assert pl.read_parquet(tmp_path / "d.none.parquet").is_empty()


def test_rows_are_written_in_groups(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    count = 2 * GROUP_ROWS + 1
    output = write_output(*({"image_path": f"{number}.jpg", "objects": [BOX]} for number in range(count)))
    assert export(output, "parquet", tmp_path / "d.parquet").code == 0
    paths = pl.read_parquet(tmp_path / "d.parquet")["image_path"].to_list()
    assert paths == [f"{number}.jpg" for number in range(count)]


def test_a_table_with_a_column_for_every_row_is_refused(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    rows = ({"image_path": f"{number}.jpg", "objects": [BOX], f"k{number}": 1} for number in range(1001))
    done = export(write_output(*rows), "parquet", tmp_path / "d.parquet")
    assert done.code == 2
    assert "over 1000 columns beside those of a run, 'k1000' among them" in done.err


@pytest.mark.parametrize("name", ["labeled.jsonl", "labeled.reviewed.jsonl", "copy.jsonl"])
def test_who_reviewed_a_row_is_not_published(
    name: str, rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    review = {"reviewed": True, "reviewed_by": "ann@example.org", "reviewed_at": "2026-11-25T10:00:00Z"}
    output, to = write_output(*(row | {"license": "CC0"} for row in rows)), tmp_path / "d.parquet"
    reviewed = [{"image_path": row["image_path"], "objects": [BOX], "license": "CC0"} | review for row in rows[::2]]
    text = "".join(json.dumps(row) + "\n" for row in reviewed)
    output.with_name("labeled.reviewed.jsonl").write_text(text)
    output.with_name("copy.jsonl").write_text(text)
    done = export(output.with_name(name), "parquet", to, "--card", tmp_path / "README.md")
    assert done.code == 0, done.err
    table = pl.read_parquet(to)
    assert table.columns[8:] == ["license"]
    assert "cat" in str(table["objects"].to_list()), "the reviewed rows are there"
    assert "@" not in table.write_json()
    assert "@example" not in (tmp_path / "README.md").read_text()


def test_a_review_is_where_the_file_of_reviews_has_one_and_not_where_a_column_of_the_input_says_so(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    own = {"reviewed": True, "reviewed_by": "the museum"}
    output, to = write_output(*(row | own for row in rows)), tmp_path / "d.parquet"
    write_audit(tmp_path, {rows[0]["image_path"]: 0.25})
    done = export(output, "parquet", to, "--card", tmp_path / "README.md")
    assert "as people corrected them" not in done.out
    assert "Nobody checked them" in (tmp_path / "README.md").read_text()
    table = pl.read_parquet(to)
    assert table["reviewed"].to_list() == [True] * 100
    assert table["reviewed_by"].to_list() == ["the museum"] * 100
    assert table["agreement"].to_list() == [0.25] + [None] * 99
    to.unlink()
    output.with_name("labeled.reviewed.jsonl").write_text(json.dumps(rows[0] | own) + "\n")
    assert "1 images as people corrected them" in export(output, "parquet", to).out
    assert pl.read_parquet(to)["reviewed"].to_list() == [None] + [True] * 99
    to.unlink()
    assert "1 images as people corrected them" in export(output.with_name("labeled.reviewed.jsonl"), "parquet", to).out
