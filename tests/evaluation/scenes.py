"""Drawn scenes: a truth in COCO, and answers with every kind of error."""

import json
import random
from pathlib import Path
from typing import Any

SIDES = ((640, 480), (1000, 1000), (333, 777), (64, 2000))
NAMES = ("cat", "dog", "person", "sofa")


def box_of(rng: random.Random) -> list[int]:
    """A box of the output's form; multiples of 50 make many ties."""
    step = rng.choice((1, 50))
    x, y = (rng.randrange(0, 900 // step) * step for _ in range(2))
    width, height = (min(rng.choice((20, 50, 100, 300, 500)), 1000 - start) for start in (x, y))
    return [x, y, x + width, y + height]


def in_pixels(box: Any, size: tuple[int, int]) -> list[float]:
    """COCO's form of a box."""
    x1, y1, x2, y2 = box
    return [number * side / 1000 for number, side in zip((x1, y1, x2 - x1, y2 - y1), size * 2, strict=True)]


def answers_to(rng: random.Random, truth: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a model may say of these objects: missed, extra, shifted, renamed, doubled, in another order."""
    found = []
    for item in truth:
        x1, y1, x2, y2 = item["bbox"]
        kind = rng.choice(("exact", "exact", "missed", "shifted", "shifted", "renamed", "doubled"))
        if kind == "missed":
            continue
        by = rng.choice((-50, -10, 10, 25, 50)) if kind == "shifted" else 0
        box = [min(999, max(0, x1 + by)), y1, min(1000, max(1, x2 + by)), y2]
        if box[0] >= box[2]:
            continue
        name = rng.choice(NAMES) if kind == "renamed" else item["name"]
        found += [{"name": name, "bbox": box}] * (2 if kind == "doubled" else 1)
    found += [{"name": rng.choice(NAMES), "bbox": box_of(rng)} for _ in range(rng.randrange(3))]
    rng.shuffle(found)
    return found


def write_scenes(folder: Path, count: int, seed: int = 0, *, plain: bool = False) -> dict[str, Any]:
    """Writes truth.json (COCO), truth.jsonl and labeled.jsonl; returns the COCO.

    Unless they are `plain`, COCO has crowds and boxes without width, which rows cannot have.
    """
    rng = random.Random(seed)
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    rows, outputs = [], []
    for number in range(1, count + 1):
        size, name = rng.choice(SIDES), f"{number:04d}.jpg"
        coco["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        truth = [{"name": rng.choice(NAMES), "bbox": box_of(rng)} for _ in range(rng.randrange(9))]
        truth += [dict(item) for item in truth[:1]] * rng.randrange(2)  # twice the same box
        for item in truth:
            box = in_pixels(item["bbox"], size)
            crowd = int(not plain and rng.random() < 0.1)
            if not plain and rng.random() < 0.02:
                box[2] = 0.0
            coco["annotations"].append({
                "id": len(coco["annotations"]) + 1, "image_id": number, "category_id": NAMES.index(item["name"]) + 1,
                "bbox": box, "area": box[2] * box[3], "iscrowd": crowd,
            })  # fmt: skip
        rows.append({"image_path": name, "objects": truth})
        said = answers_to(rng, truth)
        outputs.append({"image_path": name, "objects": said, "width": size[0], "height": size[1]})
    rng.shuffle(outputs)
    (folder / "truth.json").write_text(json.dumps(coco))
    write_rows(folder / "truth.jsonl", rows)
    write_rows(folder / "labeled.jsonl", outputs)
    return coco


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes a JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
