"""Draws seeded scenes of coloured shapes with known boxes, in the sizes and file formats of real folders."""

import json
import random
from pathlib import Path

from PIL import Image

from vllm_annotate.images.upright import ORIENTATION_TAG
from vllm_annotate.proof.drawings import BACKGROUNDS, GAP, Drawing, draw, place

# EXIF orientation → how to store an upright image under it (the inverse of what turns it upright).
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def draw_scene(rng: random.Random, width: int, height: int, count: int) -> Drawing:
    """Draws a scene of `count` (at most 6) shapes, each in a different colour."""
    background = rng.choice(BACKGROUNDS)
    return draw((width, height), place(rng, (width, height), count), background)


def save_turned(image: Image.Image, path: Path, orientation: int) -> None:
    """Saves a JPEG that viewers show as `image`, stored under an EXIF orientation (1–8)."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    method = STORED[orientation]
    stored = image if method is None else image.transpose(method)
    stored.save(path, "JPEG", quality=95, subsampling=0, exif=exif)


def save_with_alpha(image: Image.Image, path: Path) -> None:
    """Saves a PNG whose right edge is transparent over black, like a cut-out."""
    rgba = image.convert("RGBA")
    strip = Image.new("RGBA", (max(1, image.width // 20), image.height), (0, 0, 0, 0))
    rgba.paste(strip, (image.width - strip.width, 0))
    rgba.save(path, "PNG")


def write_folder(folder: Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """Writes `count` images, `input.jsonl` and `truth.jsonl`; returns these two paths.

    Sizes vary from 240 to 1600 pixels; every orientation occurs; every tenth is a PNG with alpha; the last is corrupt.
    A truth line is {"image_path", "objects": [{"name", "bbox": [x1, y1, x2, y2]}]}, boxes 0–1000 and not rounded.
    """
    rng = random.Random(seed)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    truths: list[dict[str, object]] = []
    for number in range(count):
        width, height = rng.randint(240, 1600), rng.randint(240, 1200)
        scene = draw_scene(rng, width, height, rng.randint(1, 4))
        name = f"{number:04d}.png" if number % 10 == 9 else f"{number:04d}.jpg"
        if name.endswith(".png"):
            scene = _clear_right_edge(rng, width, height)
            save_with_alpha(scene.image, images / name)
        else:
            save_turned(scene.image, images / name, number % 8 + 1)
        rows.append({"image_path": name, "caption": caption(scene, chinese=number % 2 == 0), "source": "demo"})
        truths.append({"image_path": name, "objects": truth(scene)})
    broken = images / name
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 3])
    return _write_lines(folder / "input.jsonl", rows), _write_lines(folder / "truth.jsonl", truths[:-1])


def write_small_folder(folder: Path, count: int, shapes: int, seed: int = 1) -> tuple[Path, Path]:
    """Like `write_folder`, for the tiny grounder: PNGs of 224 × 224 with `shapes` shapes each, none corrupt."""
    rng = random.Random(seed)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    truths: list[dict[str, object]] = []
    for number in range(count):
        scene = draw_scene(rng, 224, 224, shapes)
        name = f"{number:04d}.png"
        scene.image.save(images / name)
        rows.append({"image_path": name, "caption": caption(scene, chinese=number % 2 == 0)})
        truths.append({"image_path": name, "objects": truth(scene)})
    return _write_lines(folder / "input.jsonl", rows), _write_lines(folder / "truth.jsonl", truths)


def _write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _clear_right_edge(rng: random.Random, width: int, height: int) -> Drawing:
    """A scene with nothing in its right twentieth, for a cut-out."""
    scene = draw_scene(rng, width - width // 20 - GAP, height, rng.randint(1, 4))
    wider = Image.new("RGB", (width, height), "white")
    wider.paste(scene.image)
    return Drawing(wider, scene.shapes)


def caption(scene: Drawing, *, chinese: bool) -> str:
    """A caption that names the shapes of the scene."""
    names = [shape.name(chinese=chinese) for shape in scene.shapes]
    return f"一张包含{'、'.join(names)}的图片" if chinese else f"A picture with a {' and a '.join(names)}"


def truth(scene: Drawing) -> list[dict[str, object]]:
    """The scene's objects with boxes 0–1000, not rounded."""
    width, height = scene.image.size
    return [
        {
            "name": shape.name(chinese=False),
            "bbox": [
                shape.box[0] / width * 1000, shape.box[1] / height * 1000,
                shape.box[2] / width * 1000, shape.box[3] / height * 1000,
            ],
        }
        for shape in scene.shapes
    ]  # fmt: skip
