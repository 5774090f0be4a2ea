"""Counts over answers with any content."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vllm_annotate.grounding.quality import Quality

ANSWER = {"objects": [{"name": "cat", "bbox": [0, 0, 500, 1000]}], "flags": ["swapped"], "attempts": 2}
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "bbox", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_an_answer_is_counted_by_its_content() -> None:
    quality = Quality()
    quality.add(ANSWER)
    quality.add({"objects": [], "annotations_error": True})
    assert quality.summary() == {
        "answers": 2, "parse_stages": {"json": 1, "failed": 1}, "flags": {"swapped": 1}, "flagged": 1,
        "attempts": {"1": 1, "2": 1},
        "objects": 1, "objects_an_image": {"0": 1, "1": 1}, "names": {"cat": 1}, "distinct_names": 1,
        "areas": {"middle left": 1}, "mean_box_share": 0.5,
    }  # fmt: skip


@given(st.dictionaries(st.sampled_from(["objects", "flags", "parse_stage", "attempts", "annotations_error"]), anything))
def test_a_row_of_another_program_does_not_stop_a_merge(row: dict[str, Any]) -> None:
    quality = Quality()
    for _ in range(2):
        quality.add(row)
        quality.add(ANSWER)
    assert quality.summary()["answers"] == 4
    assert quality.summary()["names"]["cat"] == 2


def test_a_box_with_other_numbers_than_ours_is_not_an_annotation() -> None:
    for bbox in ([0.5, 0, 1, 1], [0, 0, 1, float("nan")], [0, 0, True, 1], [0, 0, 1, 10**400], [0, 0, 1]):
        quality = Quality()
        quality.add({"objects": [{"name": "x", "bbox": bbox}]})
        assert quality.summary()["parse_stages"] == {"failed": 1}, bbox
