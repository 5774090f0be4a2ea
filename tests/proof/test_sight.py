"""Token counts against the grid of a family: which servers see what they should, and what the others do."""

import random

import pytest

from vllm_annotate.images.prepare import smart_resize
from vllm_annotate.proof.scenes import Kind, draw_scene, random_size
from vllm_annotate.proof.sight import SHARES, Count, Sight, judge
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.image_budget import ImageBudget

QWEN = FAMILIES["qwen2.5-vl"]
BUDGET = ImageBudget(128 * 784, 1280 * 784)


def counted(rng: random.Random, server: ImageBudget, budget: ImageBudget = BUDGET, text: int = 36) -> list[Count]:
    """The counts of a server with limits of its own."""
    counts = []
    for share in SHARES:
        width, height = random_size(rng, budget, share)
        across, down = smart_resize(width, height, server)
        counts.append(Count(width, height, text + across * down // server.factor**2))
    return counts


def judged(rng: random.Random, least: int, most: int, factor: int = 28) -> Sight:
    server = ImageBudget(least * factor**2, most * factor**2, factor)
    return judge(counted(rng, server), QWEN, BUDGET, bare_tokens=34)


@pytest.mark.parametrize(("least", "most"), [(4, 16384), (128, 1280), (100, 2000)])
def test_a_server_whose_limits_include_the_budget_agrees(rng: random.Random, least: int, most: int) -> None:
    for _ in range(50):
        sight = judged(rng, least, most)
        assert (sight.verdict, sight.grid) == ("agrees", 28)


@pytest.mark.parametrize("most", [1000, 640, 256, 128, 81, 16])
def test_a_server_that_reduces_images_says_to_how_many_tokens(rng: random.Random, most: int) -> None:
    for _ in range(50):
        sight = judged(rng, 4, most)
        assert sight.verdict == "differs"
        assert sight.most is not None
        assert 0.7 * most <= sight.most <= most, sight


@pytest.mark.parametrize("least", [256, 640])
def test_a_server_that_enlarges_images_says_to_how_many_tokens(rng: random.Random, least: int) -> None:
    for _ in range(50):
        sight = judged(rng, least, 16384)
        assert sight.verdict == "differs"
        assert sight.least is not None
        assert least <= sight.least <= 1.3 * least, sight


def test_another_grid_is_recognised(rng: random.Random) -> None:
    for _ in range(50):
        sight = judged(rng, 4, 16384, factor=32)
        assert (sight.verdict, sight.grid) == ("differs", 32)


def test_another_grid_is_recognised_though_its_limits_are_narrow(rng: random.Random) -> None:
    budget, server = ImageBudget(49 * 1024, 81 * 1024, 32), ImageBudget(49 * 784, 81 * 784)
    found = [judge(counted(rng, server, budget), FAMILIES["qwen3-vl"], budget, 34) for _ in range(50)]
    assert all(sight.verdict == "differs" for sight in found)
    assert sum(sight.grid == 28 for sight in found) >= 45


def test_one_of_several_servers_behind_one_address_that_reduces_images_is_noticed(rng: random.Random) -> None:
    whole, small = ImageBudget(4 * 784, 16384 * 784), ImageBudget(4 * 784, 500 * 784)
    for _ in range(50):
        counts = counted(rng, whole)
        counts[-1] = Count(*counts[-1][:2], counted(rng, small)[-1].tokens)
        sight = judge(counts, QWEN, BUDGET, 34)
        assert sight.verdict == "differs"
        assert sight.most is not None
        assert sight.most <= 500


def test_families_without_a_grid_are_only_recorded(rng: random.Random) -> None:
    tiles = [
        Count(width, height, 256 * (1 + width // 448) * (1 + height // 448))
        for width, height, _ in counted(rng, BUDGET)
    ]
    assert judge(tiles, FAMILIES["internvl"], BUDGET).verdict == "recorded"
    assert judge(tiles, QWEN, BUDGET).verdict == "differs"


def test_counts_that_no_honest_server_gives_are_no_error(rng: random.Random) -> None:
    for wrong in (0, 1, 12, 10_000_000):
        counts = counted(rng, ImageBudget(4 * 784, 16384 * 784))
        counts[3] = Count(*counts[3][:2], wrong)
        sight = judge(counts, QWEN, BUDGET, 34)
        assert sight.verdict == "differs"
        assert draw_scene(rng, BUDGET, sight.as_seen(BUDGET), Kind(1, 0.5), "en", on_grid=True).really_seen


def test_what_a_server_shows_of_its_budget_is_used_to_read_its_boxes(rng: random.Random) -> None:
    sight = judged(rng, 4, 300)
    budget = sight.as_seen(BUDGET)
    assert budget.max_pixels == (sight.most or 0) * 784
    assert Sight(verdict="agrees").as_seen(BUDGET) == BUDGET
