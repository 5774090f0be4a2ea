"""Label Studio's own SDK takes the tasks and converts them: its validation, and its converter to COCO."""

import json
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.export.conftest import Done

pytestmark = pytest.mark.prove  # installs 500 MB in half a minute
PROGRAM = """
import json, pathlib
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface

config = LabelInterface(pathlib.Path("tasks.xml").read_text())
config.validate()
tasks = json.loads(pathlib.Path("tasks.json").read_text())
annotated = []
for number, task in enumerate(tasks):
    config.validate_task({"data": task["data"]})
    [prediction] = task["predictions"]
    assert not (errors := config.validate_prediction(prediction, return_errors=True)), errors
    annotation = {"id": number, "result": prediction["result"], "completed_by": {"id": 1, "email": "ann@example.org"}}
    annotated.append({"id": number, "data": task["data"], "annotations": [annotation]})
pathlib.Path("annotated.json").write_text(json.dumps(annotated))
Converter("tasks.xml", ".", download_resources=False).convert_to_coco("annotated.json", "coco", is_dir=False)
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter with the SDK, whose dependencies are not to meet ours."""
    folder = tmp_path / "sdk"
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "label-studio-sdk>=2"], check=True)
    return python


def test_the_sdk_accepts_every_task_and_converts_every_box(
    python: Path,
    rows: list[dict[str, Any]],
    write_output: Callable[..., Path],
    export: Callable[..., Done],
    tmp_path: Path,
) -> None:
    assert export(write_output(*rows), "label-studio", tmp_path / "tasks.json").code == 0
    done = subprocess.run([python, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "coco" / "result.json").read_text())
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in found["images"]}
    for annotation in found["annotations"]:
        boxes[annotation["image_id"]].append(annotation["bbox"])
    for row, image in zip(rows, found["images"], strict=True):
        width, height = row["width"], row["height"]
        assert (image["width"], image["height"]) == (width, height)
        for item, box in zip(row["objects"], boxes[image["id"]], strict=True):
            left, top, right, bottom = item["bbox"]
            expected = [left * width, top * height, (right - left) * width, (bottom - top) * height]
            assert [side * 1000 for side in box] == pytest.approx(expected, abs=1)
