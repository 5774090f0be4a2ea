"""Inputs that are not JSON lines."""

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.source import Source, check_source

ROWS = [{"image_path": f"{name}.jpg", "caption": "两只猫"} for name in "abc"]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        check_source(Source(path))
    return str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"])
def test_another_encoding_is_named_with_a_command_that_converts_it(tmp_path: Path, encoding: str) -> None:
    said = refusal(tmp_path / "input.jsonl", LINES.encode(encoding))
    run_shown(said, tmp_path)
    assert check_source(Source(tmp_path / "input.new.jsonl")) == ["image_path", "caption"]


def run_shown(said: str, folder: Path) -> None:
    """Runs the command of a message."""
    shown = re.search(r"convert it with (.*)$", said)
    assert shown, said
    command = shown[1].replace("python -c", f"{sys.executable} -c")
    subprocess.run(["sh", "-c", command], cwd=folder, check=True)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_refused_with_the_command_that_converts_it(tmp_path: Path, indent: int | None) -> None:
    said = refusal(tmp_path / "input.jsonl", json.dumps(ROWS, indent=indent).encode())
    assert said.endswith("it is a JSON array: convert it with jq -c '.[]' input.jsonl > input.new.jsonl")


def test_an_array_with_an_object_on_each_line_is_not_taken_for_its_last_row(tmp_path: Path) -> None:
    array = "[\n" + LINES.strip().replace("\n", ",\n") + "\n]\n"
    assert "is a JSON array: " in refusal(tmp_path / "input.jsonl", array.encode())


def test_objects_over_several_lines_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    said = refusal(tmp_path / "input.jsonl", json.dumps(ROWS[0], indent=2).encode())
    assert said.endswith("take several lines: convert it with jq -c . input.jsonl > input.new.jsonl")


def test_a_compressed_array_is_unpacked_by_the_command(tmp_path: Path) -> None:
    said = refusal(tmp_path / "it's.json.gz", gzip.compress(json.dumps(ROWS).encode()))
    assert said.endswith("""convert it with zcat 'it'"'"'s.json.gz' | jq -c '.[]' > 'it'"'"'s.json.new.jsonl'""")


def test_a_list_of_images_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    said = refusal(tmp_path / "list.txt", b"a.jpg\nb.jpg\n")
    assert said.endswith(
        """set --caption-column "" and convert it with jq -cR '{image_path: .}' list.txt > list.new.jsonl"""
    )


@pytest.mark.parametrize(
    "content",
    [
        bz2.compress(LINES.encode()),
        lzma.compress(LINES.encode()),
        b"SQLite format 3\0\x10\0,\t;" * 9,
        gzip.compress(LINES.encode("utf-16"), mtime=0),
        b"\xff\xd8\xff\xe0,,,\t",
        bytes(range(256)) * 9,
        b"",
        gzip.compress(b"", mtime=0),
        b"\n \n",
    ],
)
def test_what_is_no_text_is_not_taken_for_a_table(tmp_path: Path, content: bytes) -> None:
    said = refusal(tmp_path / "input.jsonl", content)
    assert "convert it with" not in said
    assert said.endswith("write one JSON object per line")


@pytest.mark.parametrize("cut", [slice(None, -12), slice(None, 40)])
def test_a_truncated_file_is_refused_with_the_remedy(tmp_path: Path, cut: slice) -> None:
    said = refusal(tmp_path / "input.jsonl.gz", gzip.compress(LINES.encode() * 9)[cut])
    assert "cannot be read as JSON lines (" in said
    assert said.endswith("if it is truncated or corrupt, restore it")


@pytest.mark.parametrize("paths", [[["a.jpg"]], [{"path": "a.jpg"}]])
def test_a_parquet_column_of_lists_or_structs_has_no_paths(tmp_path: Path, paths: list[object]) -> None:
    pl.DataFrame({"image_path": paths, "caption": ["x"]}).write_parquet(tmp_path / "input.parquet")
    with pytest.raises(
        UsageError, match=r"contains (List|Struct).*, not paths: write a column of texts, and set --image"
    ):
        check_source(Source(tmp_path / "input.parquet"))


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    columns = {"image_path": pl.String, "caption": pl.String}
    pl.DataFrame(schema=columns).write_parquet(tmp_path / "input.parquet")
    with pytest.raises(UsageError, match="has no rows: write one per image"):
        check_source(Source(tmp_path / "input.parquet"))


@pytest.mark.parametrize(("separator", "name"), [(",", "CSV"), ("\t", "TSV"), (";", "CSV")])
def test_a_table_is_refused_with_the_command_that_converts_it(tmp_path: Path, separator: str, name: str) -> None:
    table = "\n".join(separator.join(words) for words in (["image_path", "caption"], ["a.jpg", "two cats"]))
    said = refusal(tmp_path / "input.csv", table.encode())
    assert f"it looks like {name}" in said
    run_shown(said, tmp_path)
    assert check_source(Source(tmp_path / "input.new.jsonl")) == ["image_path", "caption"]


def test_a_byte_order_mark_of_utf_8_needs_no_conversion(tmp_path: Path) -> None:
    (tmp_path / "input.jsonl").write_text(LINES, encoding="utf-8-sig")
    assert check_source(Source(tmp_path / "input.jsonl")) == ["image_path", "caption"]


def test_what_is_unknown_is_refused_with_the_rule(tmp_path: Path) -> None:
    for content in (b"", b"\n\n", b"words\n", b"PK\x03\x04\x14\0\x06\0"):
        assert refusal(tmp_path / "input.jsonl", content).endswith("write one JSON object per line")
