"""Figures, worst images and page of an evaluation."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation.scenes import write_rows, write_scenes
from tests.report.test_page import HOSTILE, Parsed
from vllm_annotate.evaluation.evaluate import MOST_NAMES, evaluate
from vllm_annotate.evaluation.page import evaluation_page
from vllm_annotate.evaluation.report import evaluate_to_files
from vllm_annotate.evaluation.tables import aligned, evaluation_text


def test_rows_and_coco_of_the_same_truth_give_the_same_scores(tmp_path: Path) -> None:
    write_scenes(tmp_path, 60, plain=True)
    one, other = (
        evaluate(tmp_path / "labeled.jsonl", tmp_path / name).figures for name in ("truth.json", "truth.jsonl")
    )
    for name in ("images", "boxes", "precision", "recall", "f1", "intervals", "by_name"):
        assert one[name] == other[name], name


def test_the_worst_images_come_first_with_what_became_of_each_object(tmp_path: Path) -> None:
    cat, dog, far = ([0, 0, 100, 100], [200, 200, 400, 400], [600, 600, 900, 900])
    truth = {
        "half": [("cat", cat), ("dog", dog)], "none": [("cat", cat)], "worse": [("cat", cat), ("dog", dog)],
        "right": [("cat", cat)], "empty": [],
    }  # fmt: skip
    said = {
        "half": [("dog", dog)],
        "none": [],
        "worse": [("cat", far), ("emu", dog)],
        "right": [("cat", cat)],
        "empty": [],
    }
    for name, boxes in (("t", truth), ("o", said)):
        write_rows(tmp_path / f"{name}.jsonl", [
            {"image_path": path, "objects": [{"name": one, "bbox": box} for one, box in objects]}
            for path, objects in boxes.items()
        ])  # fmt: skip
    worst = evaluate(tmp_path / "o.jsonl", tmp_path / "t.jsonl").worst
    assert [(each.image_path, each.f1, each.errors) for each in worst] == [
        ("worse", 0, 4), ("none", 0, 1), ("half", 2 / 3, 1),
    ]  # fmt: skip
    assert worst[0].names("missed") == ["cat", "dog"]
    assert worst[0].names("extra") == ["cat", "emu"]
    assert worst[2].names("found") == ["dog"]
    assert worst[2].items[-1].truth == pytest.approx(dog)


def test_only_the_most_frequent_names_are_listed_and_the_rest_are_counted(tmp_path: Path) -> None:
    objects = [{"name": f"name {at}", "bbox": [1, 1, 9, 9]} for at in range(MOST_NAMES + 30)]
    rows = [{"image_path": "a", "objects": [*objects, *objects[-3:]]}]
    path = write_rows(tmp_path / "o.jsonl", rows)
    figures = evaluate(path, path).figures
    assert [each["name"] for each in figures["by_name"][:4]] == ["name 227", "name 228", "name 229", "name 0"]
    assert (len(figures["by_name"]), figures["names_left_out"]) == (MOST_NAMES, 30)
    assert "(more names in the JSON or on the page: 215)" in evaluation_text(figures)


def test_files_stand_beside_the_output_and_agree_with_each_other(tmp_path: Path) -> None:
    write_scenes(tmp_path, 30)
    (tmp_path / "images").mkdir()
    for number in range(1, 30):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{number:04d}.jpg")
    figures, written = evaluate_to_files(
        tmp_path / "labeled.jsonl", tmp_path / "truth.json", image_root=tmp_path / "images"
    )
    files = [Path(file) for file in written]
    assert [path.name for path in files] == ["labeled.evaluation.json", "labeled.evaluation.html"]
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(figures))
    page = files[1].read_text()
    assert page.count("<article") == len(figures["worst"])
    pictures = page.count("data:image/jpeg;base64,")
    assert pictures == len(figures["worst"]) - sum(each["image_path"] == "0030.jpg" for each in figures["worst"])
    shown = re.findall(r"<b>(0\.\d{3})</b>", page)
    assert shown[0] == f"{figures['f1']['0.5']:.3f}"


def test_names_and_paths_from_outside_are_escaped_on_the_page(tmp_path: Path) -> None:
    box = [1, 1, 900, 900]
    path = HOSTILE.replace("\ud800", "").replace("\x00", "")
    write_rows(tmp_path / "o.jsonl", [{"image_path": path, "objects": [{"name": path, "bbox": box}]}])
    write_rows(tmp_path / "t.jsonl", [{"image_path": path, "objects": [{"name": f"other {path}", "bbox": box}]}])
    found = evaluate(tmp_path / "o.jsonl", tmp_path / "t.jsonl")
    parsed = Parsed(evaluation_page(found.figures, found.worst, None).decode())
    assert "script" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("href", "src", "action")]
    assert "article" in parsed.tags
    assert "\x1b" not in evaluation_text(found.figures)


def test_a_page_of_crowded_images_stays_small(tmp_path: Path) -> None:
    objects = [{"name": "&" * 300, "bbox": [at % 900, at % 700, 1000, 1000]} for at in range(2500)]
    write_rows(tmp_path / "o.jsonl", [{"image_path": f"{at}", "objects": objects} for at in range(70)])
    write_rows(tmp_path / "t.jsonl", [{"image_path": f"{at}", "objects": []} for at in range(70)])
    found = evaluate(tmp_path / "o.jsonl", tmp_path / "t.jsonl")
    page = evaluation_page(found.figures, found.worst, None)
    assert len(page) < 10_000_000
    assert b"more objects" in page
    assert "left out, as at most 2,000 of an image are compared: 35,000" in found.figures["notes"][0]


def test_an_output_without_any_box_has_scores_and_a_page(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "o.jsonl", [{"image_path": "a", "objects": []}])
    found = evaluate(path, path)
    assert found.figures["f1"] == {"0.5": None, "0.75": None}
    assert "–" in evaluation_text(found.figures)
    assert b"Every box of the truth was found" in evaluation_page(found.figures, found.worst, None)


def test_columns_of_chinese_names_are_aligned() -> None:
    assert aligned([["name", "F1"], ["沙发", "1.000"]]) == "name     F1\n沙发  1.000"
