"""The order in which people look at rows."""

from typing import Any

import pytest

from vllm_annotate.grounding.box_checks import FLAGS
from vllm_annotate.report.doubt import WRONG_FLAGS, doubt
from vllm_annotate.report.gallery import doubtful_first

SOUND: dict[str, Any] = {"objects": [{"name": "cat", "bbox": [100, 100, 400, 400]}]}
TINY = {"objects": [{"name": "cat", "bbox": [100, 100, 106, 400]}]}


def test_what_is_wrong_comes_before_what_was_corrected_and_that_before_what_is_sound() -> None:
    rows: list[dict[str, Any]] = [
        {"objects": [], "annotations_error": True},
        SOUND | {"flags": ["relation_contradicted"]},
        SOUND | {"flags": ["swapped"]},
        {"failure": {"kind": "missing"}},
        TINY,
        SOUND,
    ]
    found = [doubt(row) for row in rows]
    assert found == sorted(set(found), reverse=True)
    assert (found[0], found[-1]) == (1, 0)
    assert doubt({"objects": []}) == doubt(TINY)
    assert doubt(SOUND | {"attempts": 3}) > 0


@pytest.mark.parametrize("flags", [None, "swapped", [7], [], {"a": 1}])
def test_no_row_stops_it(flags: object) -> None:
    assert 0 <= doubt(SOUND | {"flags": flags, "attempts": "x", "annotations_error": "no"}) <= 1
    assert 0 <= doubt({}) <= 1


def test_the_flags_exist() -> None:
    assert set(FLAGS) >= WRONG_FLAGS


def test_no_kind_of_doubt_crowds_out_another() -> None:
    rows = [SOUND | {"flags": ["truncated"]}] * 20 + [SOUND | {"flags": ["swapped"]}] * 2 + [SOUND]
    rows += [{"objects": [], "annotations_error": True}] * 20
    first = doubtful_first(rows)[:3]
    assert [doubt(row) for row in first] == [1, doubt(rows[0]), doubt(rows[20])]
    assert doubtful_first(rows)[-1] == SOUND
