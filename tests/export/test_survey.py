"""What an output has, whatever is in it."""

import json
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.export.conftest import Done, row
from vllm_annotate.export import survey
from vllm_annotate.export.survey import Output

Rows = list[dict[str, Any]]
BOX = {"name": "cat", "bbox": [0, 0, 500, 500]}
GOOD = {"image_path": "a.jpg", "objects": [BOX], "width": 100, "height": 100}


def exported(path: Path) -> list[str]:
    return [image["file_name"] for image in json.loads(path.read_text())["images"]]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"image_path": "torn.jpg", "objects": [{"na', "1 broken line"),
        ("[1, 2]", "1 broken line"),
        ("\0\0\0", "1 broken line"),
        ('{"a":' * 600 + "1" + "}" * 600, "1 broken line"),
        ({"objects": [BOX]}, "1 no image path"),
        (GOOD | {"image_path": ""}, "1 no image path"),
        (GOOD | {"image_path": ["b.jpg"]}, "1 no image path"),
        (GOOD, "1 repeated image"),
        (GOOD | {"image_path": "b.jpg", "annotations_error": True, "objects": []}, "1 no annotation"),
        (GOOD | {"image_path": "b.jpg", "objects": "none"}, "1 no annotation"),
        ({"image_path": "b.jpg", "objects": [BOX]}, "1 no width and height"),
        (GOOD | {"image_path": "b.jpg", "width": 0}, "1 no width and height"),
        (GOOD | {"image_path": "b.jpg", "width": -3.5}, "1 no width and height"),
        (GOOD | {"image_path": "b.jpg", "height": True}, "1 no width and height"),
        ('{"image_path": "b.jpg", "objects": [], "width": 1' + "0" * 400 + ', "height": 1}', "1 no width and height"),
        (GOOD | {"image_path": "b.jpg", "objects": []}, "1 no object left"),
        (GOOD | {"image_path": "b.jpg", "objects": [7, {"bbox": [0, 0, 1, 1]}, BOX | {"name": " "}]}, "3 no name"),
        (GOOD | {"image_path": "b.jpg", "objects": [{"name": "x", "bbox": [9, 9, 9, 20]}]}, "1 invalid box"),
        (GOOD | {"image_path": "b.jpg", "objects": [{"name": "x", "bbox": [9, 9, 3, 20]}]}, "1 invalid box"),
        (GOOD | {"image_path": "b.jpg", "objects": [{"name": "x", "bbox": [0, 0, float("nan"), 1]}]}, "1 invalid box"),
        (GOOD | {"image_path": "b.jpg", "objects": [{"name": "x", "bbox": ["0", 0, 1, 1]}]}, "1 invalid box"),
        (GOOD | {"image_path": "b.jpg", "objects": [{"name": "x", "bbox": None}]}, "1 invalid box"),
    ],
)  # fmt: skip
def test_a_bad_line_or_object_costs_only_itself_and_is_counted(
    line: Any, why: str, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    done = export(write_output(GOOD, line), "coco", tmp_path / "boxes.json")
    assert exported(tmp_path / "boxes.json") == ["a.jpg"]
    assert why in done.out
    expected = any(reason in why for reason in ("annotation", "object left", "name", "invalid box"))
    assert done.code == (0 if expected else 1)


def test_a_torn_last_line_and_bytes_that_are_not_utf_8_are_left_out(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    output = write_output(GOOD, "", GOOD | {"image_path": "b.jpg"})
    with output.open("ab") as file:
        file.write(b'{"image_path": "\xff.jpg", "objects"\n\n{"image_path": "c.jp')
    done = export(output, "coco", tmp_path / "boxes.json")
    assert exported(tmp_path / "boxes.json") == ["a.jpg", "b.jpg"]
    assert "2 broken line" in done.out


def test_rows_that_a_run_adds_meanwhile_are_left_for_the_next_export(write_output: Callable[..., Path]) -> None:
    output = Output(write_output(GOOD))
    with output.path.open("a") as file:
        file.write(json.dumps(GOOD | {"image_path": "b.jpg"}) + "\n")
    assert survey.survey(output).images == 1


def test_sizes_that_are_missing_come_from_the_images_upright(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    without = [{"image_path": name, "objects": [BOX]} for name in ("turned.jpg", "gone.jpg", "../turned.jpg")]
    done = export(write_output(*without), "coco", tmp_path / "boxes.json", "--image-root", tmp_path)
    assert "2 no width and height" in done.out
    [image] = json.loads((tmp_path / "boxes.json").read_text())["images"]
    assert (image["width"], image["height"]) == (30, 40)


class Counting(SimpleHTTPRequestHandler):
    """Serves a folder, and notes what is read."""

    reads: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.reads[self.path] += 1
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_splits_read_no_image_more_often(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    names = [f"{number}.png" for number in range(12)]
    for name in names:
        Image.new("L", (40, 30)).save(images / name)
    output = write_output(*({"image_path": name, "objects": [BOX]} for name in names))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(images))) as server:
        threading.Thread(target=server.serve_forever).start()
        root = f"http://127.0.0.1:{server.server_port}/"
        reads = []
        for number, more in enumerate(([], ["--split", "a=0.4,b=0.3,c=0.3"])):
            Counting.reads.clear()
            done = export(output, "coco", tmp_path / f"{number}.json", "--image-root", root, *more)
            assert done.code == 0, done.err
            reads.append(dict(Counting.reads))
        server.shutdown()
    assert len(reads[0]) == len(names)
    assert reads[1] == reads[0]
    found = [name for split in "abc" for name in exported(tmp_path / f"1.{split}.json")]
    assert sorted(found) == sorted(names)


def test_of_repeated_images_the_first_row_is_exported_in_every_split(
    rows: Rows, write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    later = [row | {"objects": [{"name": "later", "bbox": [0, 0, 9, 9]}]} for row in rows]
    done = export(write_output(*rows, "torn {", *later), "coco", tmp_path / "b.json", "--split", "a=0.5,b=0.5")
    assert done.code == 1
    assert "100 repeated image" in done.out
    found = [json.loads((tmp_path / f"b.{split}.json").read_text()) for split in "ab"]
    assert sum(len(each["images"]) for each in found) == len(rows)
    assert "later" not in {category["name"] for category in found[0]["categories"]}


def test_rows_that_people_corrected_take_the_place_of_the_models(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    unparsed = GOOD | {"image_path": "b.jpg", "annotations_error": True, "objects": []}
    output = write_output(GOOD, unparsed, GOOD | {"image_path": "c.jpg"})
    names = [("b.jpg", "first"), ("a.jpg", "dog"), ("b.jpg", "second"), ("gone.jpg", "x")]
    corrected = [
        GOOD | {"image_path": path, "reviewed": True, "objects": [{"name": name, "bbox": [0, 0, 9, 9]}]}
        for path, name in names
    ]
    lines = [json.dumps(row) for row in corrected]
    (tmp_path / "labeled.reviewed.jsonl").write_text("\n".join([lines[0], "torn {", *lines[1:]]))
    done = export(output, "coco", tmp_path / "boxes.json", "--card", tmp_path / "README.md")
    assert done.code == 0
    assert "2 images as people corrected them" in done.out
    assert exported(tmp_path / "boxes.json") == ["a.jpg", "b.jpg", "c.jpg"]
    by_id = {each["id"]: each["name"] for each in json.loads((tmp_path / "boxes.json").read_text())["categories"]}
    annotations = json.loads((tmp_path / "boxes.json").read_text())["annotations"]
    assert [by_id[each["category_id"]] for each in annotations] == ["dog", "second", "cat"]
    assert "People corrected 2 images" in (tmp_path / "README.md").read_text()


def test_an_output_without_anything_to_export_is_refused_and_nothing_is_written(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    done = export(write_output(GOOD | {"annotations_error": True}, "x"), "coco", tmp_path / "boxes.json")
    assert done.code == 2
    assert "nothing to export: images left out: 1 no annotation, 1 broken line" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["labeled.jsonl"]


def peak_mib(output: Path, form: str, to: Path) -> int:
    """The most memory that an export takes."""
    program = (
        "import sys, resource; from vllm_annotate.cli.main import main; code = main(sys.argv[1:]);"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024); sys.exit(code)"
    )
    arguments = ["export", "--output", output, "--format", form, "--to", to]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.search(r"peak (\d+)", done.stdout)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("form", ["coco", "parquet"])
def test_memory_does_not_grow_with_the_rows(form: str, tmp_path: Path, rng: random.Random) -> None:
    peaks = []
    for count in (10_000, 40_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        filler = "x" * 2000
        with (folder / "labeled.jsonl").open("w") as file:
            for number in range(count):
                file.write(json.dumps(row(number, rng, vlm_output=filler)) + "\n")
        peaks.append(peak_mib(folder / "labeled.jsonl", form, folder / "out"))
    assert peaks[1] < peaks[0] + 40, peaks


def test_more_names_than_memory_should_hold_are_refused_where_each_needs_an_id(
    write_output: Callable[..., Path], export: Callable[..., Done], tmp_path: Path
) -> None:
    names = [{"name": f"name {number}", "bbox": [0, 0, 9, 9]} for number in range(survey.MAX_NAMES + 1)]
    done = export(write_output(GOOD | {"objects": names}), "coco", tmp_path / "boxes.json")
    assert done.code == 2
    assert "has over 500000 different names" in done.err
    assert "--names" in done.err
