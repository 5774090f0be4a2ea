"""Scenes: of a size within the budget, drawn as described, and telling the spaces apart."""

import random
from itertools import product

import pytest

from vllm_annotate.grounding.box_checks import iou
from vllm_annotate.images.prepare import is_within, smart_resize
from vllm_annotate.proof.drawings import COLOURS, place
from vllm_annotate.proof.scenes import SPACES, Kind, Scene, Space, draw_scene, random_size, thousandths
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.image_budget import ImageBudget

BUDGETS = [
    ImageBudget(least * factor**2, most * factor**2, factor)
    for factor, (least, most) in product(
        (28, 32), ((128, 1280), (49, 81), (4, 16384), (1024, 4096), (256, 256), (4, 4))
    )
]


def answer(scene: Scene, space: Space, seen: tuple[int, int]) -> str:
    """The boxes of a scene as a model writes them in this space."""
    boxes = []
    for shape in scene.drawing.shapes:
        x1, y1, x2, y2 = (side / 1000 for side in thousandths(shape, scene.drawing.size))
        width, height = {"pixels": seen, "thousandths": (1000, 1000), "unit": (1, 1)}[space.unit]
        digits = 3 if space.unit == "unit" else None
        numbers = [round(side, digits) for side in (x1 * width, y1 * height, x2 * width, y2 * height)]
        boxes.append([numbers[1], numbers[0], numbers[3], numbers[2]] if space.y_first else numbers)
    return f'{{"rationale": "", "objects": {[{"bbox_2d": box, "label": "shape"} for box in boxes]}}}'.replace("'", '"')


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_sizes_are_within_the_budget(budget: ImageBudget, rng: random.Random) -> None:
    for share in (0, 0.5, 1):
        for on_grid in (False, True):
            width, height = random_size(rng, budget, share, on_grid=on_grid)
            assert is_within(width, height, budget)
            rounded = (round(width / budget.factor) * budget.factor, round(height / budget.factor) * budget.factor)
            assert smart_resize(width, height, budget) == rounded
            if on_grid:
                assert rounded == (width, height)


def test_in_a_budget_that_no_size_is_within_the_size_is_one_that_a_run_sends(rng: random.Random) -> None:
    budget = ImageBudget(499 * 784, 499 * 784)
    width, height = random_size(rng, budget, 0.5)
    assert (width % 28, height % 28) == (0, 0)
    assert 450 <= width * height // 784 <= 550


def test_sizes_reach_both_ends_of_the_budget(rng: random.Random) -> None:
    budget = BUDGETS[0]
    pixels = [width * height for width, height in (random_size(rng, budget, share) for share in (0, 1) * 20)]
    assert min(pixels) < 1.3 * budget.min_pixels
    assert max(pixels) > 0.8 * budget.max_pixels


def test_shapes_are_where_their_boxes_are(rng: random.Random) -> None:
    scene = draw_scene(rng, BUDGETS[0], BUDGETS[0], Kind(2, 0.5), "en", on_grid=False)
    for shape in scene.drawing.shapes:
        x1, y1, x2, y2 = shape.box
        inside = scene.drawing.image.getpixel(((x1 + x2) // 2, (y1 + y2) // 2 + (y2 - y1) // 6))
        assert inside == COLOURS[shape.colour]
        assert shape.name(chinese=False) in scene.caption


@pytest.mark.parametrize("budget", BUDGETS[:4], ids=str)
@pytest.mark.parametrize("written", SPACES, ids=str)
def test_an_answer_fits_in_the_space_that_it_is_written_in_and_in_no_other(
    budget: ImageBudget, written: Space, rng: random.Random
) -> None:
    for shapes in (1, 2):
        scene = draw_scene(rng, budget, budget, Kind(shapes, rng.random()), "en", on_grid=False)
        fits = scene.fits(answer(scene, written, scene.seen), FAMILIES["qwen2.5-vl"])
        assert fits[written] > 0.9
        assert all(fit < 0.5 for space, fit in fits.items() if space != written), fits


def test_two_shapes_of_a_scene_do_not_touch(rng: random.Random) -> None:
    for _ in range(20):
        first, second = draw_scene(rng, BUDGETS[0], BUDGETS[0], Kind(2, 0.2), "zh", on_grid=False).drawing.shapes
        assert iou(first.box, second.box) == 0


def test_small_images_get_fewer_shapes_rather_than_none_that_fit(rng: random.Random) -> None:
    for side in (28, 56, 84, 300):
        for _ in range(100):
            for count in (1, 2, 4):
                shapes = place(rng, (side, side), count, (0.25, 0.45))
                assert 1 <= len(shapes) <= count
                assert all(0 < shape.box[0] < shape.box[2] < side for shape in shapes)


def test_scenes_are_as_large_as_asked(rng: random.Random) -> None:
    budget = BUDGETS[0]
    sizes = [draw_scene(rng, budget, budget, Kind(1, 1.0), "en", on_grid=False).drawing.size for _ in range(20)]
    assert min(width * height for width, height in sizes) > 0.7 * budget.max_pixels
