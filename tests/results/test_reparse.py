"""Re-parsing answers without the model."""

import json
from pathlib import Path

import pytest
import yaml

from stand_in.ugly_answers import HEIGHT, WIDTH, corpus
from tests.conftest import ROOT, lines_of
from vllm_annotate.cli.main import main
from vllm_annotate.grounding.answers import answer_fields, read_answer
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.results.reparse import reparse, reparsed

ROW = {
    "image_path": "a.jpg", "caption": "c", "source": "web",
    "vlm_output": '{"rationale": "r", "objects": [{"bbox_2d": [28, 56, 280, 560], "label": "cat"}]}',
    "annotations": None, "objects": [], "annotations_error": True, "flags": ["swapped"],
    "width": 300, "height": 600, "sent_size": [280, 560],
}  # fmt: skip


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_every_answer_is_parsed_again_and_other_lines_are_copied(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.jsonl", ROW, "not ours", {"image_path": "b.jpg"}), tmp_path / "b.jsonl"
    before = source.read_bytes()
    assert main(["reparse", "--input", str(source), "--output", str(target), "--family", "qwen2.5-vl"]) == 0
    assert source.read_bytes() == before
    first, *others = target.read_text().splitlines()
    row = json.loads(first)
    assert row["objects"] == [{"name": "cat", "bbox": [100, 100, 1000, 1000]}]
    assert row["annotations"] == {"rationale": "r", "objects": row["objects"]}
    assert "annotations_error" not in row
    assert "flags" not in row
    assert {name: row[name] for name in ("source", "vlm_output", "width", "sent_size")} == {
        name: ROW[name] for name in ("source", "vlm_output", "width", "sent_size")
    }
    assert "sent_as" not in row, "rows of earlier versions have none"
    assert others == ["not ours", '{"image_path": "b.jpg"}']


def test_a_row_is_parsed_again_as_the_run_parsed_it_cut_answers_too() -> None:
    forms = yaml.safe_load((ROOT / "tests" / "grounding" / "answer_forms.yaml").read_text())
    texts = [(form["text"], form.get("family", "qwen2.5-vl"), form.get("truncated", False)) for form in forms]
    for text, name, truncated in [*texts, *((case.text, case.family, case.truncated) for case in corpus())]:
        for whole in {True, not truncated}:
            answer = read_answer(text, FAMILIES[name], (WIDTH, HEIGHT), whole=whole)
            if answer.annotation is None and not whole:
                continue  # the run records a failure, and no row
            row = {"vlm_output": text, "sent_size": [WIDTH, HEIGHT], **answer_fields(answer, 2)}
            assert reparsed(row, FAMILIES[name], "") == answer_fields(answer, 2), text


def test_how_an_image_was_sent_is_kept(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.jsonl", ROW | {"sent_as": "original"}), tmp_path / "b.jsonl"
    assert main(["reparse", "--input", str(source), "--output", str(target), "--family", "qwen2.5-vl"]) == 0
    assert lines_of(target)[0]["sent_as"] == "original"


def test_another_family_gives_other_boxes(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.jsonl", ROW), tmp_path / "b.jsonl"
    assert main(["reparse", "--input", str(source), "--output", str(target), "--family", "qwen2-vl"]) == 0
    assert lines_of(target)[0]["objects"][0]["bbox"] == [28, 56, 280, 560]


def test_the_family_comes_from_the_recipe_beside_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path / "a.jsonl", ROW), tmp_path / "b.jsonl"
    assert main(["reparse", "--input", str(source), "--output", str(target)]) == 2
    assert "set --family to the model's family" in capsys.readouterr().err
    (tmp_path / "a.work").mkdir()
    settings = {"model": "x", "family": "qwen2.5-vl"}
    (tmp_path / "a.work" / "recipe.json").write_text(json.dumps({"fingerprint": "f", "settings": settings}))
    assert main(["reparse", "--input", str(source), "--output", str(target)]) == 0


def test_an_answer_without_an_annotation_sets_the_exit_code(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.jsonl", ROW | {"vlm_output": "prose"}), tmp_path / "b.jsonl"
    assert main(["reparse", "--input", str(source), "--output", str(target), "--family", "qwen2.5-vl"]) == 1
    assert lines_of(target)[0]["annotations_error"] is True


def test_pixels_without_a_sent_size_are_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = {name: value for name, value in ROW.items() if name != "sent_size"}
    source, target = write(tmp_path / "a.jsonl", ROW, older), tmp_path / "b.jsonl"
    assert main(["reparse", "--input", str(source), "--output", str(target), "--family", "qwen2.5-vl"]) == 2
    assert "line 2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert main(["reparse", "--input", str(source), "--output", str(target), "--family", "qwen2-vl"]) == 0


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", ROW)
    assert main(["reparse", "--input", str(source), "--output", str(source), "--family", "qwen2-vl"]) == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_columns_pass_through_as_written_and_edited_fields_stop_nothing(tmp_path: Path) -> None:
    target = tmp_path / "again.jsonl"
    text = '"vlm_output": "[]", "width": 640, "sent_size": [644, 476], "height": 480'
    rows = [
        f'{{"image_path": "a.jpg", "big": 123456789012345678901234567890, "nan": NaN, "cents": 1.10, {text}}}',
        '{"image_path": "b.jpg", "sent_size": [644, 476], "vlm_output": "[]", "flags": 3, "attempts": {}}',
    ]
    (tmp_path / "labeled.jsonl").write_text("\n".join(rows) + "\n")
    reparse(tmp_path / "labeled.jsonl", target, FAMILIES["qwen2.5-vl"])
    first, second = target.read_text().splitlines()
    assert first.startswith(
        '{"image_path":"a.jpg","big":123456789012345678901234567890,"nan":NaN,"cents":1.10,"vlm_output":'
    )
    assert list(json.loads(second))[:2] == ["image_path", "vlm_output"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.jsonl", "labeled.jsonl"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "labeled.jsonl", ROW)
    given = ["--input", str(source), "--output", str(tmp_path / "nowhere" / "x.jsonl"), "--family", "qwen2.5-vl"]
    assert main(["reparse", *given]) == 2
    assert "nowhere" in capsys.readouterr().err
