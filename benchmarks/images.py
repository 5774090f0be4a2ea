"""Draws images as the web and phones have them, seeded; no size is chosen to suit a model's grid.

`python -m benchmarks.images` prints what it draws: sizes, bytes per pixel, and how much of it is within the budget.
"""

import os
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from PIL import Image, ImageCms

from demo.scenes import STORED
from vllm_annotate.images.prepare import is_within
from vllm_annotate.images.upright import ORIENTATION_TAG
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.settings import Recipe

DISTINCT = 300
# (share in percent, longer side in pixels): thumbnails and previews, articles, originals made for the web.
WEB_SIZES = ((35, (400, 700)), (35, (700, 1100)), (20, (1100, 2000)))
PHONES, CUT_OUTS = 7, 3  # percent: 12 megapixels with an orientation; PNG with alpha
ASPECTS = {4 / 3: 35, 3 / 2: 30, 16 / 9: 12, 1: 15, 5 / 4: 8}  # → weight
PORTRAITS, CROPPED, PROGRESSIVE = 0.4, 0.5, 0.25  # shares
METADATA = {"none": 50, "icc": 20, "xmp": 15, "exif": 15}  # → weight
PHONE_SIZE, PHONE_SCENES, PHONE_ORIENTATIONS = (4032, 3024), 4, (6, 6, 1, 1, 3, 8)
THUMBNAIL_SIDES = {(160, 120): 5, (512, 384): 2}  # → weight
THUMBNAIL_QUALITY = 75
TEXTURES, SIDE = 3, 2048
OCTAVES = 7  # from 16 pixels to SIDE
LEFT_OUT = "drawn noise instead of photos, files in the page cache, canned answers, no model"  # by all figures


class Texture(NamedTuple):
    """The same noise with details of a pixel and without."""

    sharp: Image.Image
    smooth: Image.Image


def draw_mix(folder: Path, distinct: int = DISTINCT) -> list[Path]:
    """Writes distinct images of the mix into a new folder, and returns them in random order."""
    folder.mkdir()
    rng = random.Random(0)
    textures = [draw_texture(rng) for _ in range(TEXTURES)]
    files: list[tuple[bytes, str]] = [(content, "jpg") for content in _phone_pictures(rng, textures, distinct)]
    files += [(_cut_out(rng, textures), "png") for _ in range(round(distinct * CUT_OUTS / 100))]
    for share, sides in WEB_SIZES:
        files += [(_web_picture(rng, textures, sides), "jpg") for _ in range(round(distinct * share / 100))]
    rng.shuffle(files)
    paths = []
    for number, (content, ending) in enumerate(files):
        paths.append(folder / f"{number:04d}.{ending}")
        paths[-1].write_bytes(content)
    return paths


def within_budget(paths: Sequence[Path]) -> list[Path]:
    """The JPEGs that a model sees at their own size, rounded to its grid: upright and within the default budget."""
    budget, kept = Recipe().image_budget(FAMILIES["qwen2.5-vl"]), []
    for path in paths:
        with Image.open(path) as image:
            upright = image.format == "JPEG" and image.getexif().get(ORIENTATION_TAG, 1) == 1
            if upright and is_within(*image.size, budget):
                kept.append(path)
    return kept


def draw(folder: Path, count: int) -> dict[str, Path]:
    """Writes two inputs of `count` rows each and returns them: the mix, and its part within the budget."""
    mix = draw_mix(folder / "drawn")
    distinct = {"mix": mix, "within the budget": within_budget(mix)}
    return {what: write_input(folder / what.replace(" ", "-"), paths, count) for what, paths in distinct.items()}


def described(what: str) -> str:
    """What an input of `draw` consists of, for a caption."""
    sizes = ", ".join(f"{share} % with {least}–{most} pixels on the longer side" for share, (least, most) in WEB_SIZES)
    if what == "mix":
        return f"{sizes}, {PHONES} % with 12 megapixels and an orientation, {CUT_OUTS} % PNG with alpha"
    return "only the JPEGs of the mix that are upright and within 128–1280 visual tokens, at whatever size they have"


def write_input(folder: Path, distinct: Sequence[Path], count: int) -> Path:
    """Writes an input of `count` rows with unique names and captions, hard links to the distinct images."""
    images = folder / "images"
    images.mkdir(parents=True)
    source = folder / "input.jsonl"
    with source.open("wb") as rows:
        for number in range(count):
            path = distinct[number % len(distinct)]
            name = f"{number:06d}{path.suffix}"
            os.link(path, images / name)
            rows.write(orjson.dumps({"image_path": name, "caption": f"a row of things, number {number}"}) + b"\n")
    return source


def draw_texture(rng: random.Random) -> Texture:
    """Noise whose contrast grows with its size, as in photos; the finest is grey, as their grain is."""
    total, smooth = _noise(rng, "RGB", SIDE >> OCTAVES), None
    for octave in range(1, OCTAVES + 1):
        side = total.width * 2
        fine = octave > OCTAVES - 3
        if fine and smooth is None:
            smooth = total.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noise = _noise(rng, "L" if fine else "RGB", side).convert("RGB")
        total = Image.blend(total.resize((side, side), Image.Resampling.BICUBIC), noise, 0.16 if fine else 0.3)
    assert smooth is not None  # noqa: S101 - for the type checker
    return Texture(total, smooth)


def _noise(rng: random.Random, mode: str, width: int, height: int = 0) -> Image.Image:
    height = height or width
    return Image.frombytes(mode, (width, height), rng.randbytes(width * height * len(mode)))


def draw_picture(rng: random.Random, textures: Sequence[Texture], size: tuple[int, int]) -> Image.Image:
    """A piece of a texture, somewhere between sharp and smooth."""
    texture = rng.choice(textures)
    left, top = (rng.randrange(SIDE - side + 1) for side in size)
    box = (left, top, left + size[0], top + size[1])
    return Image.blend(texture.smooth.crop(box), texture.sharp.crop(box), rng.uniform(0.1, 0.6))


def _size(rng: random.Random, sides: tuple[int, int]) -> tuple[int, int]:
    longer = rng.randint(*sides)
    shorter = longer / _one_of(rng, ASPECTS)
    if rng.random() < CROPPED:  # by hand, to no aspect ratio in particular
        shorter *= rng.uniform(0.9, 1)
    return (round(shorter), longer) if rng.random() < PORTRAITS else (longer, round(shorter))


def _one_of(rng: random.Random, weights: dict[Any, int]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]


def _web_picture(rng: random.Random, textures: Sequence[Texture], sides: tuple[int, int]) -> bytes:
    picture, metadata = draw_picture(rng, textures, _size(rng, sides)), _one_of(rng, METADATA)
    content: dict[str, Any] = {
        "none": {},
        "icc": {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()},
        "xmp": {"xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + b" " * rng.randint(1000, 10_000) + b"</x:xmpmeta>"},
        "exif": {"exif": _exif(rng, picture, 1)},
    }[metadata]
    return _jpeg(picture, rng.randint(75, 95), progressive=rng.random() < PROGRESSIVE, **content)


def _cut_out(rng: random.Random, textures: Sequence[Texture]) -> bytes:
    picture = draw_picture(rng, textures, _size(rng, WEB_SIZES[0][1]))
    alpha = _noise(rng, "L", 8).resize(picture.size, Image.Resampling.BICUBIC).point(lambda value: 255 * (value > 96))
    picture.putalpha(alpha)
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _phone_pictures(rng: random.Random, textures: Sequence[Texture], distinct: int) -> Iterator[bytes]:
    """Few scenes, as 12 megapixels take long to encode; each picture has its own orientation and thumbnail."""
    scenes = []
    for _ in range(PHONE_SCENES):
        small = draw_picture(rng, textures, (SIDE, SIDE * 3 // 4)).resize(PHONE_SIZE, Image.Resampling.BICUBIC)
        grain = _noise(rng, "L", *PHONE_SIZE).convert("RGB")
        scenes.append((small, _jpeg(Image.blend(small, grain, rng.uniform(0.06, 0.1)), rng.randint(85, 95))))
    for number in range(round(distinct * PHONES / 100)):
        picture, jpeg = scenes[number % PHONE_SCENES]
        turned = STORED[orientation := rng.choice(PHONE_ORIENTATIONS)]
        exif = _exif(rng, picture if turned is None else picture.transpose(turned), orientation)
        yield jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def _jpeg(picture: Image.Image, quality: int, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def _exif(rng: random.Random, picture: Image.Image, orientation: int) -> bytes:
    """An EXIF segment's content: the orientation, a maker's note, and a thumbnail in the second directory."""
    size = _one_of(rng, THUMBNAIL_SIDES)
    thumbnail = _jpeg(picture.resize(size), THUMBNAIL_QUALITY)
    note = rng.randbytes(rng.randint(2000, 8000))
    first, second = 8, 8 + 2 + 2 * 12 + 4
    data = second + 2 + 3 * 12 + 4
    return b"Exif\0\0II*\0" + b"".join([
        struct.pack("<IH", first, 2),
        struct.pack("<HHIHxx", ORIENTATION_TAG, 3, 1, orientation),
        struct.pack("<HHII", 0x927C, 7, len(note), data),
        struct.pack("<IH", second, 3),
        struct.pack("<HHIHxx", 0x0103, 3, 1, 6),  # compression: JPEG
        struct.pack("<HHII", 0x0201, 4, 1, data + len(note)),
        struct.pack("<HHII", 0x0202, 4, 1, len(thumbnail)),
        struct.pack("<I", 0), note, thumbnail,
    ])  # fmt: skip


def main() -> None:
    """Prints what is drawn."""
    with tempfile.TemporaryDirectory() as name:
        begun = time.monotonic()
        mix = draw_mix(Path(name, "mix"))
        print(f"{len(mix)} images in {time.monotonic() - begun:.1f} s")
        _describe("the mix", mix)
        _describe("its part within the budget", within_budget(mix))


def _describe(what: str, paths: Sequence[Path]) -> None:
    kilobytes, pixels = [path.stat().st_size / 1000 for path in paths], []
    for path in paths:
        with Image.open(path) as image:
            pixels.append(image.width * image.height)
    density = sorted(1000 * size / of for size, of in zip(kilobytes, pixels, strict=True))
    edge = len(density) // 20
    print(
        f"{what}: {len(paths)} images, on average {statistics.mean(pixels) / 1e6:.2f} megapixels and "
        f"{statistics.mean(kilobytes):.0f} kB, at least {min(kilobytes):.0f} kB; bytes per pixel "
        f"{statistics.median(density):.2f} (nine tenths {density[edge]:.2f}–{density[-1 - edge]:.2f})"
    )


if __name__ == "__main__":
    main()
