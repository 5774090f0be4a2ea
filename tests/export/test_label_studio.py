"""Label Studio: tasks, predictions and config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.export.conftest import Done, write_audit
from vllm_annotate.export import label_studio
from vllm_annotate.export.label_studio import image_url

Rows = list[dict[str, Any]]
RESULT = {"id", "type", "from_name", "to_name", "original_width", "original_height", "image_rotation", "value"}


def test_every_task_has_one_prediction_with_all_boxes_in_percent(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    rows[0]["agreement"] = 0.1  # a column of the input
    write_audit(tmp_path, {rows[0]["image_path"]: 0.5})
    made_by = [{"recipe": "r", "model": name, "first": name, "last": name} for name in ("A", "B")]
    (tmp_path / "labeled.report.json").write_text(json.dumps({"made_by": made_by}))
    assert export(write_output(*rows), "label-studio", tmp_path / "tasks.json").code == 0
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["predictions"][0].get("score") for task in tasks] == [0.5] + [None] * 99
    labels = labels_of(tmp_path / "tasks.xml")
    for row, task in zip(rows, tasks, strict=True):
        assert task["data"] == {name: row["image_path" if name == "image" else name]
                                for name in ("image", "image_path", "caption")}  # fmt: skip
        [prediction] = task["predictions"]
        assert prediction["model_version"] == "B"
        *boxes, rationale = prediction["result"]
        assert rationale["value"] == {"text": [row["annotations"]["rationale"]]}
        assert len({result["id"] for result in prediction["result"]}) == len(prediction["result"])
        for item, result in zip(row["objects"], boxes, strict=True):
            assert set(result) == RESULT
            assert (result["original_width"], result["original_height"]) == (row["width"], row["height"])
            value = result["value"]
            left, top, right, bottom = item["bbox"]
            assert [value[side] for side in ("x", "y", "width", "height")] == pytest.approx(
                [left / 10, top / 10, (right - left) / 10, (bottom - top) / 10]
            )
            [label] = value["rectanglelabels"]
            assert label in labels
            assert label.casefold() == " ".join(item["name"].casefold().replace("ﬁ", "fi").split())


def labels_of(config: Path) -> list[str]:
    root = ElementTree.parse(config).getroot()  # noqa: S314 - ours
    return [label.attrib["value"] for label in root.iter("Label")]


@pytest.mark.parametrize("name", ['"', "a\x00b", "<Label>", "&amp;", "\ufffe", "\u202eabc", "a\tb\nc", "{labels}"])
def test_the_config_has_a_label_for_any_name(
    name: str, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    row = {"image_path": "a.jpg", "objects": [{"name": name, "bbox": [0, 0, 9, 9]}], "width": 10, "height": 10}
    assert export(write_output(row), "label-studio", tmp_path / "tasks.json").code == 0
    [task] = json.loads((tmp_path / "tasks.json").read_text())
    assert task["predictions"][0]["result"][0]["value"]["rectanglelabels"] == labels_of(tmp_path / "tasks.xml")


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("", "a b/é?.jpg"),
        ("https://host/images", "https://host/images/a%20b/%C3%A9%3F.jpg"),
        ("/data/local-files/?d=", "/data/local-files/?d=a%20b/%C3%A9%3F.jpg"),
        ("/data/local-files/?d=images/", "/data/local-files/?d=images/a%20b/%C3%A9%3F.jpg"),
        ("s3://bucket/images/", "s3://bucket/images/a b/é?.jpg"),
    ],
)
def test_images_are_where_the_prefix_says(prefix: str, url: str) -> None:
    assert image_url(prefix, "a b/é?.jpg") == url


def test_splits_share_a_config(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    done = export(write_output(*rows), "label-studio", tmp_path / "tasks.json", "--split", "a=0.5,b=0.5")
    assert f"labelling config: {tmp_path / 'tasks.xml'}" in done.out
    assert {path.name for path in tmp_path.iterdir()} == {
        "labeled.jsonl", "tasks.a.json", "tasks.b.json", "tasks.xml",
    }  # fmt: skip


def test_tasks_that_would_be_the_config_and_too_many_labels_are_refused(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    count = label_studio.MAX_LABELS + 1
    objects = [{"name": f"name {number}", "bbox": [0, 0, 9, 9]} for number in range(count)]
    output = write_output({"image_path": "a.jpg", "objects": objects, "width": 10, "height": 10})
    done = export(output, "label-studio", tmp_path / "tasks.json")
    assert done.code == 2
    assert f"{count} names are too many for Label Studio" in done.err
    done = export(output, "label-studio", tmp_path / "tasks.xml")
    assert done.code == 2
    assert "is the name of the labelling config: choose one that ends in .json" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["labeled.jsonl"]
