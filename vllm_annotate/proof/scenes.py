"""Scenes that tell the spaces apart: their boxes, read in any other space, lie elsewhere."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from vllm_annotate.errors import UnparsableAnswer
from vllm_annotate.grounding.box_checks import iou
from vllm_annotate.grounding.parse import parse_answer
from vllm_annotate.images.prepare import is_within, smart_resize
from vllm_annotate.proof.drawings import BACKGROUNDS, Drawing, Shape, draw, place
from vllm_annotate.recipe.families import DENOMINATORS, Family
from vllm_annotate.recipe.image_budget import ImageBudget

MARKS = {"en": "Test drawing", "zh": "测试图"}  # how captions begin
SIDES = (0.25, 0.45)  # of the shapes: large, so that a wrong box is the server's and not the model's
APART = 0.35  # largest IoU of a box with itself read in another space
SMALLEST_PIXELS = 224**2  # models miss shapes in smaller images
MANY_TRIES = 500
NEAR_A_THOUSAND = (800, 1250)  # pixels: sides at which pixels and thousandths look alike
MOST_ASPECT = 1.8


class Kind(NamedTuple):
    """How many shapes a scene has, and where its size is within the budget: 0 is the smallest, 1 the largest."""

    shapes: int
    share: float


class Space(NamedTuple):
    """What the numbers of a box mean. 999ths count as thousandths, which differ from them by less than a pixel."""

    unit: Literal["pixels", "thousandths", "unit"]
    y_first: bool = False

    def __str__(self) -> str:
        return {"unit": "shares from 0 to 1"}.get(self.unit, self.unit) + (", y first" if self.y_first else "")


SPACES = [Space(unit, y_first) for y_first in (False, True) for unit in ("pixels", "thousandths", "unit")]
# The family to name for a space; the others have none.
FAMILY_OF = {
    Space("pixels"): "qwen2.5-vl",
    Space("thousandths"): "thousandths",
    Space("unit"): "kimi-vl",
    Space("thousandths", y_first=True): "gemini",
}


def space_of(family: Family) -> Space:
    """The space in which a family writes boxes."""
    return Space("thousandths" if family.space == "999ths" else family.space, family.y_first)


@dataclass(frozen=True)
class Scene:
    """A drawing, and the size in which the model sees it, pixels."""

    drawing: Drawing
    caption: str
    seen: tuple[int, int]  # by the recipe's budget and family
    really_seen: tuple[int, int]  # by what the server counts

    def fits(self, text: str, family: Family) -> dict[Space, float]:
        """How well an answer fits the shapes in each space: mean over the shapes of the best box's IoU."""
        own = space_of(family)
        others = {
            space: self._fit(text, _in_space(family, space), self.really_seen) for space in SPACES if space != own
        }
        return {own: self._fit(text, family, self.seen)} | others

    def _fit(self, text: str, family: Family, seen: tuple[int, int]) -> float:
        try:
            objects = parse_answer(text, family, *seen).objects
        except UnparsableAnswer:
            return 0.0
        boxes = [item["bbox"] for item in objects]
        truths = [thousandths(shape, self.drawing.size) for shape in self.drawing.shapes]
        return sum(max((iou(truth, box) for box in boxes), default=0.0) for truth in truths) / len(truths)


def _in_space(family: Family, space: Space) -> Family:
    return replace(family, space=space.unit, y_first=space.y_first)


def thousandths(shape: Shape, size: tuple[int, int]) -> list[float]:
    """The box of a shape, 0–1000 of the image."""
    return [1000 * side / whole for side, whole in zip(shape.box, size * 2, strict=True)]


def draw_scene(
    rng: random.Random, budget: ImageBudget, servers: ImageBudget, kind: Kind, language: str, *, on_grid: bool
) -> Scene:
    """Draws a scene within the image budget; `on_grid`: of a size that no resizing changes.

    `servers` is the budget that the server shows.
    """
    shapes, share = kind
    for _ in range(MANY_TRIES):
        size = _size(rng, budget, share, on_grid=on_grid)
        placed, seen = place(rng, size, shapes, SIDES), smart_resize(*size, budget)
        if all(is_apart(thousandths(shape, size), seen) for shape in placed):
            break
    caption = caption_of(placed, chinese=language == "zh")
    return Scene(draw(size, placed, rng.choice(BACKGROUNDS)), caption, seen, smart_resize(*size, servers))


def caption_of(shapes: Sequence[Shape] = (), *, chinese: bool = False) -> str:
    """The caption of a drawing, which tells its requests from those of images."""
    names = [shape.name(chinese=chinese) for shape in shapes]
    if chinese:
        return f"{MARKS['zh']}:{'、'.join(names)}"
    return f"{MARKS['en']}: {' and '.join(('an ' if name[0] in 'aeiou' else 'a ') + name for name in names)}"


def _size(rng: random.Random, budget: ImageBudget, share: float, *, on_grid: bool) -> tuple[int, int]:
    """A random size within the budget, not tiny and with sides away from 1,000 if possible."""
    budget = replace(budget, min_pixels=min(budget.max_pixels, max(budget.min_pixels, SMALLEST_PIXELS)))
    sizes = [random_size(rng, budget, share, on_grid=on_grid) for _ in range(20)]
    low, high = NEAR_A_THOUSAND
    return next((size for size in sizes if not any(low < side < high for side in size)), sizes[0])


def random_size(rng: random.Random, budget: ImageBudget, share: float, *, on_grid: bool = False) -> tuple[int, int]:
    """A size that a server with this budget only rounds to its grid.

    `share` is about where its pixels are within the budget: from 0, the fewest, to 1, the most.
    """
    factor = budget.factor
    for _ in range(MANY_TRIES):
        pixels = budget.min_pixels * (budget.max_pixels / budget.min_pixels) ** (share + rng.uniform(-0.1, 0.1))
        aspect = MOST_ASPECT ** rng.uniform(-1, 1)
        size = (round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5))
        if on_grid:
            size = (max(1, round(size[0] / factor)) * factor, max(1, round(size[1] / factor)) * factor)
        if is_within(*size, budget):
            return size
    return smart_resize(*size, budget)  # in a budget of about one size: what a run sends


def is_apart(box: Sequence[float], seen: tuple[int, int]) -> bool:
    """Whether a box (0–1000), written in any space and read in any other, lies elsewhere."""
    for written in SPACES:
        numbers = [side / 1000 * size for side, size in zip(box, _sizes(written, seen) * 2, strict=True)]
        if written.y_first:
            numbers = [numbers[1], numbers[0], numbers[3], numbers[2]]
        for read in SPACES:
            if read == written:
                continue
            turned = [numbers[1], numbers[0], numbers[3], numbers[2]] if read.y_first else numbers
            other = [1000 * side / size for side, size in zip(turned, _sizes(read, seen) * 2, strict=True)]
            if iou(box, other) > APART:
                return False
    return True


def _sizes(space: Space, seen: tuple[int, int]) -> tuple[float, float]:
    if space.unit == "pixels":
        return seen
    return DENOMINATORS[space.unit], DENOMINATORS[space.unit]
