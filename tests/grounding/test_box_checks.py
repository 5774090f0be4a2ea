"""Checks of boxes."""

import time

import pytest

from vllm_annotate.grounding.box_checks import Object, check_box, check_objects


@pytest.mark.parametrize(
    ("box", "expected", "flags"),
    [
        ([28, 56, 280, 420], [100, 100, 1000, 750], []),
        ([280, 560, 28, 56], [100, 100, 1000, 1000], ["swapped"]),
        ([28, 560, 280, 56], [100, 100, 1000, 1000], ["swapped"]),
        ([-13, 0, 293, 585], [0, 0, 1000, 1000], []),
        ([-15, 0, 280, 560], [0, 0, 1000, 1000], ["beyond_edge"]),
        ([10, 10, 10, 300], None, ["degenerate"]),
        ([10, 10, 11, 300], None, ["degenerate"]),
        ([300, 600, 900, 900], None, ["beyond_edge", "degenerate"]),
        ([0.1, 0.1, 0.5, 0.9], None, ["unit_coordinates", "degenerate"]),
    ],
)
def test_a_box_is_corrected_removed_or_flagged(box: list[float], expected: list[int] | None, flags: list[str]) -> None:
    assert check_box(box, (280, 560), unit=False) == (expected, flags)


def named(*boxes: list[int], name: str = "x") -> list[Object]:
    return [{"name": name, "bbox": box} for box in boxes]


def test_an_exact_duplicate_is_removed_and_a_near_one_is_flagged() -> None:
    kept, flags = check_objects(named([0, 0, 500, 500], [0, 0, 500, 500], [0, 0, 500, 505]))
    assert [item["bbox"] for item in kept] == [[0, 0, 500, 500], [0, 0, 500, 505]]
    assert flags == {"duplicate", "near_duplicate"}


def test_thousands_of_boxes_of_one_name_are_checked_in_seconds() -> None:
    boxes = [[x, y, x + 6, y + 6] for x in range(0, 990, 7) for y in range(0, 990, 7)]
    started = time.process_time()
    assert check_objects(named(*boxes))[0] == named(*boxes)
    assert time.process_time() - started < 20


def test_two_names_for_one_box_are_not_duplicates() -> None:
    objects = named([0, 0, 500, 500], name="man") + named([0, 0, 500, 500], name="person")
    assert check_objects(objects) == (objects, set())


def test_a_box_of_the_whole_image_is_flagged() -> None:
    assert check_objects(named([0, 0, 1000, 960]))[1] == {"whole_image"}
    assert check_objects(named([0, 0, 1000, 940]))[1] == set()


def test_boxes_in_equal_steps_are_flagged_but_three_are_not() -> None:
    marching = [[100 * n, 10, 100 * n + 50, 60] for n in range(4)]
    assert check_objects(named(*marching))[1] == {"progression"}
    assert check_objects(named(*marching[:3]))[1] == set()
    uneven = [[0, 10, 50, 60], [100, 10, 150, 60], [230, 10, 280, 60], [300, 10, 350, 60]]
    assert check_objects(named(*uneven))[1] == set()
