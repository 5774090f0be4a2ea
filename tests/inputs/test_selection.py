"""Selections: the first images, or a random sample that is stable."""

import polars as pl
import pytest

from vllm_annotate.inputs.selection import Selection


def paths(count: int) -> list[str]:
    return [f"folder/{number:06d}.jpg" for number in range(count)]


def selected(selection: Selection, images: list[str]) -> list[str]:
    frame = pl.DataFrame({"line": range(1, len(images) + 1), "image_path": images})
    return selection.of(frame.lazy()).collect(engine="streaming")["image_path"].to_list()


def test_without_a_selection_all_are_taken() -> None:
    assert not Selection(seed=3)
    assert selected(Selection(), paths(5)) == paths(5)


@pytest.mark.parametrize("limit", [1, 4, 5, 6])
def test_a_limit_takes_the_first(limit: int) -> None:
    assert selected(Selection(limit=limit), paths(5)) == paths(limit)[:5]


def test_a_sample_is_in_input_order_and_spread_over_the_whole_input() -> None:
    images = paths(20_000)
    sample = selected(Selection(sample=400), images)
    assert len(sample) == 400
    assert sample == sorted(sample)
    for quarter in range(4):
        of_quarter = set(images[5_000 * quarter : 5_000 * (quarter + 1)])
        assert 70 <= len(of_quarter & set(sample)) <= 130


def test_a_larger_sample_contains_the_smaller_and_another_seed_draws_others() -> None:
    images = paths(5_000)
    small, large = (set(selected(Selection(sample=count), images)) for count in (100, 300))
    assert small < large
    assert len(small & set(selected(Selection(sample=100, seed=1), images))) < 20


def test_a_sample_stays_when_the_input_is_reordered_and_nearly_when_it_grows() -> None:
    images = paths(5_000)
    sample = set(selected(Selection(sample=200), images))
    assert set(selected(Selection(sample=200), images[::-1])) == sample
    assert len(sample & set(selected(Selection(sample=200), paths(5_500)))) > 160


def test_a_sample_is_the_same_in_every_version() -> None:
    drawn = ["folder/000399.jpg", "folder/000502.jpg", "folder/000634.jpg"]
    assert selected(Selection(sample=3, seed=7), paths(1_000)) == drawn
