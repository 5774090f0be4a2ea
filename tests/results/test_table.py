"""Outputs that are a table."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from datasets import load_dataset

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.source import done_paths
from vllm_annotate.results.table import GROUP_ROWS, SCHEMA, add_rows, lines_of_table

BOX = {"name": "cat", "bbox": [1, 2, 1000, 4]}


def answered(path: str, *objects: dict[str, Any], **more: Any) -> dict[str, Any]:
    annotations = {"rationale": f"of {path}", "objects": list(objects)}
    ours = {"vlm_output": "…", "annotations": annotations, "objects": list(objects), "width": 640, "height": 480}
    return {"image_path": path, "caption": "a", **more, **ours}


def unread(path: str) -> dict[str, Any]:
    ours: dict[str, Any] = {
        "vlm_output": "?",
        "annotations": None,
        "objects": [],
        "width": 1,
        "height": 1,
        "annotations_error": True,
    }
    return {"image_path": path, "caption": None} | ours


@pytest.fixture
def add(tmp_path: Path) -> Any:
    """Adds rows to a table of that name; returns its path."""

    def add(name: str, *lines: bytes) -> Path:
        rows = tmp_path / "growing.jsonl"
        rows.write_bytes(b"".join(lines))
        add_rows(tmp_path / name, rows)
        return tmp_path / name

    return add


def line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def test_a_table_has_typed_columns_and_each_row_as_it_was_written(add: Any) -> None:
    own = b'"caption": "a", "score": 1e400, "id": 123456789012345678901'
    digits = line(answered("b")).replace(b'"caption": "a"', own)
    lines = [line(answered("a", BOX, flags=["edge"])), digits, line(unread("c"))]
    table = pl.read_parquet(add("0.parquet", *lines))
    assert table.schema == pl.Schema(SCHEMA)
    assert table.drop("row").rows() == [
        ("a", "a", "of a", [{"name": "cat", "bbox": [1, 2, 1000, 4]}], 640, 480, ["edge"]),
        ("b", "a", "of b", [], 640, 480, None),
        ("c", None, None, None, 1, 1, None),
    ]
    assert [row.encode() + b"\n" for row in table["row"]] == lines


@pytest.mark.parametrize("caption", ['["a", "b"]', "18446744073709551615", "1e400", "true", '{"en": "a"}'])
def test_a_caption_that_is_no_text_is_json(add: Any, caption: str) -> None:
    """A run without captions leaves the input's own column of that name as it is."""
    written = line(answered("a", BOX)).replace(b'"caption": "a"', f'"caption": {caption}'.encode())
    table = pl.read_parquet(add("0.parquet", written))
    assert table["caption"].to_list() == [caption]
    assert [row.encode() + b"\n" for row in table["row"]] == [written]


def test_later_rows_come_behind_those_that_were_there(add: Any) -> None:
    lines = [line(answered(f"{number:05d}", BOX)) for number in range(GROUP_ROWS + 10)]
    path = add("0.parquet", *lines[: GROUP_ROWS + 1])
    assert add("0.parquet", *lines[GROUP_ROWS + 1 :]) == path
    assert list(lines_of_table(path)) == lines
    assert done_paths(path).collect().height == len(lines)


def test_tables_of_any_rows_are_read_together(add: Any) -> None:
    """Even of none, and of inputs with other columns."""
    own: list[dict[str, Any]] = [{}, {"url": "a"}, {"url": 1, "tags": ["x"]}]
    paths = [add(f"{number}.parquet", line(answered(str(number), BOX, **more))) for number, more in enumerate(own)]
    paths.append(add("none.parquet"))
    read = load_dataset("parquet", data_files=[str(path) for path in paths], split="train", keep_in_memory=True)
    assert read["image_path"][:] == ["0", "1", "2"]
    assert read["objects"][2] == [BOX]
    assert [json.loads(row).get("url") for row in read["row"]] == [None, "a", 1]


def test_a_table_that_no_run_wrote_or_that_is_broken_is_left_alone(add: Any, tmp_path: Path) -> None:
    other, broken = tmp_path / "0.parquet", tmp_path / "1.parquet"
    pl.DataFrame({"image_path": ["a"], "row": ["{}"]}).write_parquet(other)
    broken.write_bytes(add("2.parquet", line(answered("a"))).read_bytes()[:-20])
    before = other.read_bytes(), broken.read_bytes()
    with pytest.raises(UsageError, match=r"0\.parquet has other columns than a run writes: move it away"):
        add("0.parquet", line(answered("b")))
    with pytest.raises(UsageError, match=r"1\.parquet is truncated or corrupt"):
        add("1.parquet", line(answered("b")))
    assert (other.read_bytes(), broken.read_bytes()) == before
    pl.DataFrame({"image_path": ["a"]}).write_parquet(other)
    with pytest.raises(UsageError, match=r"0\.parquet has no column 'row' of texts, so no run has written it"):
        done_paths(other)
