"""Compares JPEGs sent as they are with JPEGs resized by the client, on a real vLLM on CPU.

`python -m benchmarks.as_they_are [scenes] [rounds]`. Prints how well tiny-grounder's boxes match the true ones either
way, and the server's requests per second either way. The requests are ready before the clock starts: what the client
saves by not resizing is in `benchmarks.client_cost`. It leaves out large models, photos and GPUs.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from benchmarks.images import Texture, draw_picture, draw_texture
from benchmarks.programs import spread
from benchmarks.tiny_grounder import Running, limits, tiny_grounder
from demo.processes import TINY_GROUNDER_RECIPE
from demo.scenes import caption, draw_scene, truth
from demo.scoring import Objects, score
from vllm_annotate.grounding.answers import read_answer
from vllm_annotate.images.prepare import PreparedImage, is_within, prepare, smart_resize
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.responses import Completion
from vllm_annotate.proof.drawings import Drawing
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.storage.yaml_fields import read_fields

FAMILY = FAMILIES["qwen2.5-vl"]
SCENE_SIDES, SCENE_QUALITY = (190, 260), 92
IMAGES, IN_FLIGHT, SMALLEST, LARGEST = 48, 16, (640, 480), (1024, 768)
WAYS = {"as they are": True, "resized": False}


class Sent(NamedTuple):
    """An image in both ways."""

    as_they_are: PreparedImage
    resized: PreparedImage


def prepared(path: Path, recipe: Recipe) -> Sent:
    """Prepares an image in both ways. Both must map to the same size."""
    budget = recipe.image_budget(FAMILY)
    sent = Sent(*(prepare(path.parent, path.name, budget, as_they_are=way) for way in WAYS.values()))
    sizes = [(image.sent_width, image.sent_height) for image in sent]
    if sent.as_they_are.sent_as == sent.resized.sent_as or sizes[0] != sizes[1]:
        raise SystemExit(f"{path}: not sent in two ways, or to two sizes: {sizes}")
    return sent


def draw_scenes(folder: Path, count: int, recipe: Recipe) -> list[tuple[Path, Drawing]]:
    """Scenes of one and two shapes, of random sizes within the recipe's budget that are not on its grid."""
    rng, budget = random.Random(0), recipe.image_budget(FAMILY)
    scenes: list[tuple[Path, Drawing]] = []
    while len(scenes) < count:
        size = rng.randint(*SCENE_SIDES), rng.randint(*SCENE_SIDES)
        if is_within(*size, budget) and smart_resize(*size, budget) != size:
            scene = draw_scene(rng, *size, 1 + len(scenes) % 2)
            path = folder / f"scene-{len(scenes)}.jpg"
            scene.image.save(path, quality=SCENE_QUALITY)
            scenes.append((path, scene))
    return scenes


async def compare_boxes(folder: Path, server: Running, count: int) -> None:
    """Prints the mean IoU in both ways, and the mean difference of a scene with its standard error."""
    recipe = Recipe(**read_fields(TINY_GROUNDER_RECIPE, "recipe", Recipe))
    scenes = draw_scenes(folder, count, recipe)
    async with Inference([server.url], "none", max_concurrency=IN_FLIGHT) as client:
        template = RequestTemplate(recipe, FAMILY, server.model)

        async def look(image: PreparedImage, scene: Drawing) -> Objects:
            completion = await client.ask(template.body(caption(scene, chinese=False), image.url()))
            size = image.sent_width, image.sent_height
            answer = read_answer(completion.text, FAMILY, size, whole=completion.finish_reason == "stop")
            return answer.annotation.objects if answer.annotation is not None else []

        scores: list[list[float]] = []
        for way in range(len(WAYS)):
            images = [prepared(path, recipe)[way] for path, _ in scenes]
            drawn = [scene for _, scene in scenes]
            found = await asyncio.gather(*map(look, images, drawn))
            pairs = [(truth(scene), objects) for scene, objects in zip(drawn, found, strict=True)]
            scores.append([score([pair]).mean_iou for pair in pairs])
    differences = [one - other for one, other in zip(*scores, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    means = ", ".join(f"{way} {statistics.mean(of):.4f}" for way, of in zip(WAYS, scores, strict=True))
    print(
        f"{len(scenes)} scenes of one and two shapes, JPEG quality {SCENE_QUALITY}: mean IoU {means}; "
        f"difference {statistics.mean(differences):+.4f} ± {error:.4f} (standard error)"
    )


def draw_photos(folder: Path) -> list[Path]:
    """JPEGs of random sizes, with as much detail as photos."""
    rng = random.Random(1)
    textures: Sequence[Texture] = [draw_texture(rng)]
    paths = []
    for number in range(IMAGES):
        size = rng.randint(SMALLEST[0], LARGEST[0]), rng.randint(SMALLEST[1], LARGEST[1])
        paths.append(folder / f"photo-{number}.jpg")
        draw_picture(rng, textures, size).save(paths[-1], quality=85)
    return paths


async def compare_rates(folder: Path, server: Running, rounds: int) -> None:
    """Prints the ratio of requests per second, in rounds in which each way goes first in turn."""
    recipe, paths = Recipe(), draw_photos(folder)
    images = [prepared(path, recipe) for path in paths]
    ratios = []
    async with Inference([server.url], "none", max_concurrency=IN_FLIGHT) as client:
        template = RequestTemplate(recipe, FAMILY, server.model)
        bodies = {
            way: [one_token(template.body("A picture.", image[number].url())) for image in images]
            for number, way in enumerate(WAYS)
        }
        for number in range(rounds + 1):
            speeds, tokens = {}, {}
            for way in list(WAYS)[:: -1 if number % 2 else 1]:
                begun = time.monotonic()
                completions: list[Completion] = await asyncio.gather(*map(client.ask, bodies[way]))
                speeds[way] = len(completions) / (time.monotonic() - begun)
                tokens[way] = [completion.prompt_tokens for completion in completions]
            if tokens["as they are"] != tokens["resized"]:
                raise SystemExit(f"not the same number of tokens for each image: {tokens}")
            rates = ", ".join(f"{way} {speeds[way]:.1f}/s" for way in WAYS)
            print(f"round {number}: {rates}" if number else f"warmup: {rates}", flush=True)
            if number:
                ratios.append(speeds["as they are"] / speeds["resized"])
    print(
        f"{IMAGES} JPEGs of {SMALLEST[0]}×{SMALLEST[1]} to {LARGEST[0]}×{LARGEST[1]}, one-token answers, {IN_FLIGHT} "
        f"in flight, the same prompt tokens for each: requests per second as they are ÷ resized {spread(ratios)}"
    )


def one_token(body: bytes) -> bytes:
    """The request with a one-token answer: the front end and the image encoder are what is left."""
    return orjson.dumps({**orjson.loads(body), "max_tokens": 1})


async def main(scenes: int = 200, rounds: int = 6) -> None:
    """Compares boxes, then rates."""
    with tempfile.TemporaryDirectory(prefix="as-they-are-") as name:
        folder = Path(name)
        async with tiny_grounder(folder, limits(4, Recipe().max_visual_tokens)) as server:
            await compare_boxes(folder, server, scenes)
            await compare_rates(folder, server, rounds)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
