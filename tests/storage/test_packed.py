"""Output files of other forms than lines."""

from pathlib import Path

import polars as pl
import pytest

from vllm_annotate.inputs.source import done_paths
from vllm_annotate.results.written import unpack
from vllm_annotate.storage.packed import add_frame, may_be_output, names_of


def test_frames_are_read_as_one_file_and_stay_byte_for_byte(tmp_path: Path) -> None:
    rows, target, copy = tmp_path / "rows.jsonl", tmp_path / "00000.jsonl.zst", tmp_path / "copy.jsonl"
    contents = [b"", b'{"image_path": "a", "caption": "\xc3\xa9\\ud800"}\n', b'{"image_path": "b"}\n' * 100_000]
    for content in contents:
        before = target.read_bytes() if target.exists() else b""
        rows.write_bytes(content)
        add_frame(target, rows)
        assert target.read_bytes().startswith(before)
    unpack(target, copy)
    assert copy.read_bytes() == b"".join(contents)
    assert sorted(done_paths(target).collect()["image_path"]) == ["a", "b"]


def test_an_output_without_rows_is_read_as_empty(tmp_path: Path) -> None:
    rows, target = tmp_path / "rows.jsonl", tmp_path / "00000.jsonl.zst"
    rows.touch()
    add_frame(target, rows)
    assert done_paths(target).collect().is_empty()


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst", ".parquet"])
def test_a_name_in_any_form_gives_all_of_them(ending: str) -> None:
    assert names_of(f"a.b/00000{ending}") == ["a.b/00000.jsonl", "a.b/00000.jsonl.zst", "a.b/00000.parquet"]


def test_a_table_may_be_an_output_if_it_has_rows(tmp_path: Path) -> None:
    of_a_run, images, text = tmp_path / "0.parquet", tmp_path / "1.parquet", tmp_path / "2.parquet"
    pl.DataFrame({"row": ["{}"]}).write_parquet(of_a_run)
    pl.DataFrame({"image": [b""]}).write_parquet(images)
    text.write_bytes(b"{}")
    assert [may_be_output(path) for path in (of_a_run, images, text, tmp_path / "3.jpg")] == [True, False, False, False]
