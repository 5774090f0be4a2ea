"""COCO's object detection format: one JSON document, boxes as x, y, width and height in pixels."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from vllm_annotate.export.about import About
from vllm_annotate.export.rows import Labeled
from vllm_annotate.grounding.names import Category, name_key


def image_of(row: Labeled, image_id: int) -> dict[str, Any]:
    """Returns the image of a row that has a size."""
    width, height = row.size or (0, 0)
    return {"id": image_id, "file_name": row.path, "width": width, "height": height}


def annotations_of(row: Labeled, image_id: int, first_id: int, ids: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yields an annotation for each object; `ids` are those of the categories."""
    for number, item in enumerate(row.objects, start=first_id):
        left, top, right, bottom = row.pixels(item)
        width, height = round(right - left, 2), round(bottom - top, 2)
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": ids[name_key(item.name)],
            "bbox": [left, top, width, height],
            "area": round(width * height, 2),
            "iscrowd": 0,
            "segmentation": [],
        }


def ids_of(categories: Iterable[str]) -> dict[str, int]:
    """Returns the ids of categories by key: 1 for the most frequent, and so on."""
    return {key: number for number, key in enumerate(categories, start=1)}


def write(path: Path, rows: Iterable[Labeled], about: About) -> None:
    """Writes the document. Annotations wait in a temporary file, as they follow the images."""
    ids = ids_of(about.categories)
    next_id = 1
    with path.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as waiting:
        file.write(b'{"info":{"description":"made by vllm-annotate"},"licenses":[],\n"images":[')
        for image_id, row in enumerate(rows, start=1):
            file.write((b",\n" if image_id > 1 else b"\n") + orjson.dumps(image_of(row, image_id)))
            for annotation in annotations_of(row, image_id, next_id, ids):
                waiting.write((b",\n" if next_id > 1 else b"\n") + orjson.dumps(annotation))
                next_id += 1
        file.write(b'\n],\n"annotations":[')
        waiting.seek(0)
        shutil.copyfileobj(waiting, file)
        file.write(b'\n],\n"categories":' + orjson.dumps(_categories(about.categories, ids)) + b"}\n")


def _categories(categories: dict[str, Category], ids: dict[str, int]) -> list[dict[str, Any]]:
    return [{"id": ids[key], "name": category.name} for key, category in categories.items()]
