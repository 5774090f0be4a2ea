"""Corrected rows in place of the model's."""

import json
from pathlib import Path

from vllm_annotate.results.reviewed import Reviewed, reviewed_file
from vllm_annotate.storage.atomic import replacing


def line(image: str, name: str) -> bytes:
    return json.dumps({"image_path": image, "objects": [{"name": name}]}).encode() + b"\n"


def test_an_import_meanwhile_changes_nothing_for_whoever_reads(tmp_path: Path) -> None:
    output = tmp_path / "labeled.jsonl"
    corrected = {image: line(image, "corrected") for image in ("a", "b", "c")}
    reviewed_file(output).write_bytes(b"".join(corrected.values()))
    rows = Reviewed(output)
    for _ in range(2):
        assert [rows.in_place_of(line(image, "model")) for image in corrected] == list(corrected.values())
        with replacing(reviewed_file(output)) as file:
            file.write(line("a much longer row than before" * 9, "new") + line("c", "new"))
    assert rows.in_place_of(line("d", "model")) == line("d", "model")
    assert Reviewed(output).in_place_of(line("c", "model")) == line("c", "new")


def test_without_reviews_every_row_stays(tmp_path: Path) -> None:
    rows = Reviewed(tmp_path / "labeled.jsonl")
    assert rows.in_place_of(line("a", "model")) == line("a", "model")
    assert "a" not in rows
