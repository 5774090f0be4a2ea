"""Compressed output files."""

from pathlib import Path

from vllm_annotate.inputs.source import done_paths
from vllm_annotate.storage.packed import add_frame, unpack


def test_frames_are_read_as_one_file_and_stay_byte_for_byte(tmp_path: Path) -> None:
    rows, target, copy = tmp_path / "rows.jsonl", tmp_path / "00000.jsonl.zst", tmp_path / "copy.jsonl"
    contents = [b"", b'{"image_path": "a", "caption": "\xff\\ud800"}\n', b'{"image_path": "b"}\n' * 100_000]
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
