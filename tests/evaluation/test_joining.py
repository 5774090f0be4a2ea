"""An output and a truth, joined by path."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.scenes import write_rows
from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.evaluate import evaluate

CAT = {"name": "cat", "bbox": [100, 100, 500, 500]}
SIZE = {"width": 1000, "height": 500}


def row(path: str, *objects: Any, **more: Any) -> dict[str, Any]:
    return {"image_path": path, "objects": list(objects), **SIZE, **more}


def coco(folder: Path, *names: str, size: dict[str, int] | None = None) -> Path:
    """A truth with the box of CAT, in pixels, in each of these images."""
    box = {"category_id": 1, "bbox": [100, 50, 400, 200]}
    content = {
        "images": [{"id": at, "file_name": name, **(SIZE if size is None else size)} for at, name in enumerate(names)],
        "annotations": [{"image_id": at, **box} for at in range(len(names))],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def test_images_of_one_file_alone_are_counted_and_not_scored(tmp_path: Path) -> None:
    output = write_rows(tmp_path / "o.jsonl", [row("b", CAT), row("a", CAT), row("only here", CAT)])
    truth = write_rows(tmp_path / "t.jsonl", [row("a", CAT), row("b"), row("only there", CAT), row("there too")])
    figures = evaluate(output, truth).figures
    assert figures["images"] == {"scored": 2, "truth_only": 2, "output_only": 1}
    assert figures["boxes"] == {"truth_boxes": 1, "answer_boxes": 2}
    assert (figures["precision"]["0.5"], figures["recall"]["0.5"], figures["mean_iou"]) == (0.5, 1, 1)


def test_what_cannot_be_read_in_an_output_costs_itself_and_is_told(tmp_path: Path) -> None:
    boxes: list[Any] = [None, 7, [1, 2, 3], [1, 2, 3, "4"], [5, 5, 1, 9], [0, 0, 1001, 5], [float("nan"), 0, 1, 1], {}]
    rows = [
        row("a", CAT, *({"name": "cat", "bbox": box} for box in boxes), "cat", None),
        row("b", annotations_error=True), row("c") | {"objects": None}, row("a"), {"caption": "no path"},
    ]  # fmt: skip
    output = write_rows(tmp_path / "o.jsonl", rows)
    with output.open("a") as file:
        file.write('{"torn": \n')
    truth = write_rows(tmp_path / "t.jsonl", [row("a", CAT), row("b", CAT), row("c", CAT)])
    figures = evaluate(output, truth).figures
    assert figures["boxes"] == {"truth_boxes": 3, "answer_boxes": 1}
    assert [note.rpartition(": ")[2] for note in figures["notes"]] == ["1", "2", "10", "1"], figures["notes"]
    assert "which count as images without boxes" in figures["notes"][0]
    assert "of which the first one counts" in figures["notes"][3]


def test_a_name_that_is_no_text_is_a_name_all_the_same(tmp_path: Path) -> None:
    output = write_rows(tmp_path / "o.jsonl", [row("a", {"name": 7, "bbox": CAT["bbox"]}, {"bbox": CAT["bbox"]})])
    truth = write_rows(tmp_path / "t.jsonl", [row("a", CAT | {"name": "7"}, CAT | {"name": ""})])
    assert evaluate(output, truth).figures["f1"]["0.5"] == 1


def test_synonyms_count_as_one_name(tmp_path: Path) -> None:
    output = write_rows(tmp_path / "o.jsonl", [row("a", CAT | {"name": "Kitty"})])
    truth = write_rows(tmp_path / "t.jsonl", [row("a", CAT)])
    figures = evaluate(output, truth).figures
    assert figures["f1"]["0.5"] == 0
    (note,) = figures["notes"]
    assert note.startswith("answered boxes with a name that the truth of these images never has")
    (tmp_path / "s.yaml").write_text("- [cat, kitty]\n")
    figures = evaluate(output, truth, tmp_path / "s.yaml").figures
    assert [(each["name"], each["f1"]["0.5"]) for each in figures["by_name"]] == [("cat", 1)]


def test_coco_is_joined_by_path_or_by_a_unique_base_name(tmp_path: Path) -> None:
    output = write_rows(tmp_path / "o.jsonl", [row("x/a.jpg", CAT), row("b.jpg", CAT), row("train/c.jpg", CAT)])
    figures = evaluate(output, coco(tmp_path, "a.jpg", "train/b.jpg", "train/c.jpg")).figures
    assert figures["f1"]["0.5"] == 1
    assert figures["images"]["scored"] == 3
    assert figures["notes"] == ["images with another path in the truth, found by their base name: 2"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [(["a.jpg"], ["x/a.jpg", "y/a.jpg"]), (["x/a.jpg", "y/a.jpg"], ["a.jpg"]), (["y/a.jpg", "a.jpg"], ["a.jpg"])],
)
def test_a_base_name_that_two_images_have_is_refused(paths: list[str], names: list[str], tmp_path: Path) -> None:
    output = write_rows(tmp_path / "o.jsonl", [row(path, CAT) for path in paths])
    with pytest.raises(UsageError, match=r"the base name 'a.jpg': write file_name in the truth as image_path"):
        evaluate(output, coco(tmp_path, *names))


def test_an_exact_path_is_never_ambiguous(tmp_path: Path) -> None:
    output = write_rows(tmp_path / "o.jsonl", [row("x/a.jpg", CAT), row("y/a.jpg", CAT)])
    assert evaluate(output, coco(tmp_path, "y/a.jpg", "x/a.jpg")).figures["f1"]["0.5"] == 1


def test_files_without_a_common_image_are_refused(tmp_path: Path) -> None:
    output = write_rows(tmp_path / "o.jsonl", [row("images/a", CAT)])
    truth = write_rows(tmp_path / "t.jsonl", [row("a", CAT)])
    with pytest.raises(UsageError, match="no image in common: the former has 'images/a', the latter 'a'; write"):
        evaluate(output, truth)


def test_coco_without_sizes_takes_those_of_the_output(tmp_path: Path) -> None:
    truth = coco(tmp_path, "a.jpg", size={})
    output = write_rows(tmp_path / "o.jsonl", [row("a.jpg", CAT)])
    assert evaluate(output, truth).figures["mean_iou"] == 1
    write_rows(output, [row("a.jpg", CAT) | {"width": None}])
    with pytest.raises(UsageError, match=r"image 'a.jpg' has no width and height, neither .*: add them"):
        evaluate(output, truth)


def test_an_image_that_lies_on_its_side_in_the_truth_is_told(tmp_path: Path) -> None:
    truth = coco(tmp_path, "a.jpg", size={"width": 500, "height": 1000})
    output = write_rows(tmp_path / "o.jsonl", [row("a.jpg", CAT)])
    assert "images with another shape in the truth" in evaluate(output, truth).figures["notes"][0]


def test_boxes_of_unknown_pixels_are_in_no_size(tmp_path: Path) -> None:
    boxes = [CAT, {"name": "dog", "bbox": [0, 0, 10, 10]}]
    truth = write_rows(tmp_path / "t.jsonl", [row("a", *boxes), row("b", *boxes)])
    output = write_rows(tmp_path / "o.jsonl", [row("a", *boxes), {"image_path": "b", "objects": boxes}])
    sizes = evaluate(output, truth).figures["by_size"]
    assert {size: each["truth_boxes"] for size, each in sizes.items()} == {"small": 1, "medium": 0, "large": 1}


def test_more_images_than_a_batch_are_all_scored(tmp_path: Path) -> None:
    count = 20_000
    truth = write_rows(tmp_path / "t.jsonl", [row(f"{at}", CAT) for at in range(count)])
    output = write_rows(tmp_path / "o.jsonl", [row(f"{at}", *[CAT] * (at % 2)) for at in reversed(range(count))])
    found = evaluate(output, truth)
    assert found.figures["recall"]["0.5"] == 0.5
    assert found.figures["images"]["scored"] == count
    assert len(found.worst) == 60
    assert {int(each.image_path) % 2 for each in found.worst} == {0}
