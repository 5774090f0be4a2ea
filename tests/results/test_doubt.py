"""The order in which people should look."""

import random
from typing import Any

import pytest

from vllm_annotate.results.doubt import doubt

BIG, TINY = ({"name": "cat", "bbox": [0, 0, side, side]} for side in (500, 10))
ROWS: list[dict[str, Any]] = [  # most doubtful first
    {"agreement": 0.1, "objects": [BIG]},
    {"flags": ["swapped", "beyond_edge", "truncated"], "objects": [BIG]},
    {"flags": ["swapped"], "objects": [BIG]},
    {"annotations_error": True, "objects": []},
    {"objects": [TINY, TINY]},
    {"agreement": 0.7, "flags": ["swapped"], "objects": [TINY]},
    {"objects": [TINY, BIG]},
    {"objects": [BIG], "flags": ["several_answers"]},
]


def test_agreement_counts_first_then_flags_then_no_annotation_then_tiny_boxes(rng: random.Random) -> None:
    shuffled = rng.sample(ROWS, len(ROWS))
    assert sorted(shuffled, key=doubt, reverse=True) == ROWS


@pytest.mark.parametrize(
    "odd", [None, 3, "x", [], {}, [None], [{"bbox": "abcd"}], [{"bbox": [1, 2]}], float("nan"), 10**400]
)
@pytest.mark.parametrize("field", ["agreement", "flags", "objects", "annotations_error"])
def test_any_content_has_a_doubt_from_0_to_1(field: str, odd: Any) -> None:
    assert 0 <= doubt({"objects": [BIG]} | {field: odd}) <= 1
