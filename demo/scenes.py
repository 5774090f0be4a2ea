"""Draws seeded scenes of coloured shapes with known boxes, in the sizes and file formats of real folders."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from stand_in.answers import CHINESE
from stand_in.vision import COLOURS
from vllm_annotate.images.upright import ORIENTATION_TAG

FORMS = ("circle", "square", "triangle")
BACKGROUNDS = ((245, 245, 240), (225, 230, 235), (205, 200, 195), (255, 255, 255))
SMALLEST_SHARE, LARGEST_SHARE = 0.15, 0.45  # of the shorter side
GAP = 8  # pixels between shapes: they never touch

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

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shape:
    """A drawn shape; `box` is (x1, y1, x2, y2) in pixels of the upright image, x2 and y2 exclusive."""

    colour: str
    form: str
    box: Box

    def name(self, *, chinese: bool) -> str:
        """`red circle`, `红色圆形`."""
        return CHINESE[self.colour] + CHINESE[self.form] if chinese else f"{self.colour} {self.form}"


@dataclass(frozen=True)
class Scene:
    """An upright image and what is in it."""

    image: Image.Image
    shapes: list[Shape]


def draw_scene(rng: random.Random, width: int, height: int, count: int) -> Scene:
    """Draws a scene of `count` (at most 6) shapes, each in a different colour."""
    image = Image.new("RGB", (width, height), rng.choice(BACKGROUNDS))
    draw = ImageDraw.Draw(image)
    shapes: list[Shape] = []
    for colour in rng.sample(sorted(COLOURS), count):
        box = _free_box(rng, width, height, [shape.box for shape in shapes])
        shape = Shape(colour, rng.choice(FORMS), box)
        _draw_shape(draw, shape)
        shapes.append(shape)
    return Scene(image, sorted(shapes, key=lambda shape: shape.box))


def _free_box(rng: random.Random, width: int, height: int, taken: list[Box]) -> Box:
    shorter = min(width, height)
    largest = LARGEST_SHARE
    while True:
        side = int(rng.uniform(SMALLEST_SHARE, largest) * shorter)
        x, y = rng.randint(1, width - side - 1), rng.randint(1, height - side - 1)
        if all(
            x + side + GAP <= x1 or x2 + GAP <= x or y + side + GAP <= y1 or y2 + GAP <= y for x1, y1, x2, y2 in taken
        ):
            return (x, y, x + side, y + side)
        largest = max(SMALLEST_SHARE, largest * 0.97)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Shape) -> None:
    x1, y1, x2, y2 = shape.box[0], shape.box[1], shape.box[2] - 1, shape.box[3] - 1  # Pillow's corners are inclusive
    colour = COLOURS[shape.colour]
    if shape.form == "circle":
        draw.ellipse((x1, y1, x2, y2), fill=colour)
    elif shape.form == "square":
        draw.rectangle((x1, y1, x2, y2), fill=colour)
    else:
        draw.polygon([((x1 + x2) / 2, y1), (x2, y2), (x1, y2)], fill=colour)


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


def _clear_right_edge(rng: random.Random, width: int, height: int) -> Scene:
    """A scene with nothing in its right twentieth, for a cut-out."""
    scene = draw_scene(rng, width - width // 20 - GAP, height, rng.randint(1, 4))
    wider = Image.new("RGB", (width, height), "white")
    wider.paste(scene.image)
    return Scene(wider, scene.shapes)


def caption(scene: Scene, *, chinese: bool) -> str:
    """A caption that names the shapes of the scene."""
    names = [shape.name(chinese=chinese) for shape in scene.shapes]
    return f"一张包含{'、'.join(names)}的图片" if chinese else f"A picture with a {' and a '.join(names)}"


def truth(scene: Scene) -> list[dict[str, object]]:
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
