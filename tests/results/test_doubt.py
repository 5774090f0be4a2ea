"""The order in which people look at rows."""

from typing import Any

import pytest

from vllm_annotate.grounding.box_checks import FLAGS
from vllm_annotate.results.doubt import MILD_FLAGS, WRONG_FLAGS, doubt

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
    found = [doubt(row, None) for row in rows]
    assert found == sorted(set(found), reverse=True)
    assert (found[0], found[-1]) == (1, 0)
    assert doubt({"objects": []}, None) == doubt(TINY, None)
    assert doubt(SOUND | {"attempts": 3}, None) > 0


@pytest.mark.parametrize("flags", [None, "swapped", [7], [], {"a": 1}])
def test_no_row_stops_it(flags: object) -> None:
    assert 0 <= doubt(SOUND | {"flags": flags, "attempts": "x", "annotations_error": "no"}, None) <= 1
    assert 0 <= doubt({}, None) <= 1


def test_the_flags_exist() -> None:
    assert set(FLAGS) >= WRONG_FLAGS | MILD_FLAGS
    assert not WRONG_FLAGS & MILD_FLAGS


def test_what_an_audit_measured_comes_before_all_else() -> None:
    assert doubt(SOUND, 0.1) == 0.9
    assert doubt({"annotations_error": True}, 1) == 0


def test_a_column_of_the_input_named_agreement_says_nothing() -> None:
    assert doubt(SOUND | {"agreement": 0.1}, None) == 0
    assert doubt(SOUND | {"agreement": 0.1}, 0.75) == 0.25


@pytest.mark.parametrize(
    "odd", [None, 3, "x", [], {}, [None], [{"bbox": "abcd"}], [{"bbox": [1, 2]}], float("nan"), 10**400]
)
@pytest.mark.parametrize("field", ["agreement", "flags", "objects", "annotations_error", "attempts", "failure"])
def test_any_content_has_a_doubt_from_0_to_1(field: str, odd: Any) -> None:
    assert 0 <= doubt(SOUND | {field: odd}, None) <= 1
