"""Shapes of JSON values."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vllm_annotate.grounding.boxes import BOX_KEYS
from vllm_annotate.grounding.objects import NAME_KEYS, part_as_asked, parts_of

numbers = st.integers(-10, 2000) | st.floats(allow_nan=False) | st.sampled_from(["7", "x", None, True])
fields = st.tuples(
    st.sampled_from([*BOX_KEYS, "x"]), st.lists(numbers, min_size=3, max_size=5) | st.text(max_size=3),
    st.sampled_from([*NAME_KEYS[:3], "bbox"]), st.text(max_size=5) | st.none(),
)  # fmt: skip
objects = st.lists(fields.map(lambda each: {each[0]: each[1], each[2]: each[3]}), max_size=4)
answers = st.fixed_dictionaries({"rationale": st.text(max_size=9) | st.none(), "objects": objects | st.none()})


@given(answers)
def test_the_fast_way_reads_what_the_other_one_does(value: dict[str, Any]) -> None:
    part = part_as_asked(value, json.dumps(value, ensure_ascii=False).count('"'))
    if part is not None:
        assert list(parts_of(value)) == [part]


def test_the_usual_answer_takes_the_fast_way_and_one_that_repeats_a_key_does_not() -> None:
    for box_key in BOX_KEYS:
        for name_key in NAME_KEYS[:2]:
            text = f'{{"rationale": "r", "objects": [{{"{name_key}": "cat", "{box_key}": [1, 2, 3, 4]}}]}}'
            assert part_as_asked(json.loads(text), text.count('"')) is not None
    text = '{"rationale": "r", "objects": [{"label": "cat", "bbox": [9, 9, 9, 9], "bbox": [1, 2, 3, 4]}]}'
    assert part_as_asked(json.loads(text), text.count('"')) is None
