"""Model text → rationale and boxes 0–1000."""

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import UnparsableAnswer
from flows.grounding import parse_answer, to_thousandths

CLEAN = {"rationale": "一只猫在左边。", "objects": [{"bbox_2d": [28, 56, 280, 420], "label": "猫"}]}
BOX = [100, 100, 1000, 750]  # of a 280 × 560 image


def boxes(text: str) -> list[list[int]]:
    return [item["bbox"] for item in parse_answer(text, 280, 560).objects]


def test_a_clean_answer_keeps_its_words_and_gets_boxes_of_1000() -> None:
    annotation = parse_answer(json.dumps(CLEAN, ensure_ascii=False), 280, 560)
    assert annotation.rationale == "一只猫在左边。"
    assert annotation.objects == [{"name": "猫", "bbox": BOX}]
    assert annotation.flags == []


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{json.dumps(CLEAN)}\n```",
        f"Here is the answer:\n{json.dumps(CLEAN)}\nI hope it helps.",
        f"<think>Is {{this}} a cat? {{\"objects\": []}}</think>{json.dumps(CLEAN)}",
        f'a cat at {{"objects": [{{"bbox_2d": [0, 0, 9, 9], "label": "cat"}}]}}?</think>{json.dumps(CLEAN)}',
        json.dumps(CLEAN).replace("[28, 56, 280, 420]", '["28", "56.0", " 280", 420]'),
        str(CLEAN),  # single quotes
        json.dumps(CLEAN).replace("]}]}", "],}],}"),
        json.dumps(CLEAN["objects"]),
        json.dumps(CLEAN)[:-2],
        json.dumps(CLEAN).replace("bbox_2d", "bbox").replace("label", "name"),
        json.dumps(CLEAN, ensure_ascii=False).replace("。", "。\n\t"),  # raw controls, as xgrammar lets through
    ],
)  # fmt: skip
def test_common_blemishes_are_mended(text: str) -> None:
    assert boxes(text) == [BOX]


@pytest.mark.parametrize("text", ["", "I cannot see an image.", "null", "42", '{"rationale": "x"}', '{"objects": 3}'])
def test_a_text_without_objects_is_unparsable(text: str) -> None:
    with pytest.raises(UnparsableAnswer):
        parse_answer(text, 280, 560)


def test_an_empty_list_of_objects_is_an_answer() -> None:
    assert parse_answer('{"rationale": "empty street", "objects": []}', 280, 560).objects == []


@pytest.mark.parametrize(
    ("box", "expected", "flag"),
    [
        ([280, 560, 28, 56], [[100, 100, 1000, 1000]], "swapped"),
        ([-100, 0, 280, 560], [[0, 0, 1000, 1000]], "beyond_edge"),
        ([0, 0, 281, 561], [[0, 0, 1000, 1000]], None),
        ([10, 10, 10, 20], [], "degenerate"),
        ([10, 10, 20], [], "malformed_box"),
        ([10, 10, "wide", 30], [], "malformed_box"),
        ([10, 10, "nan", 30], [], "malformed_box"),
        ([10, 10, True, 30], [], "malformed_box"),
        ([10, 10, 1e300, 30], [], "malformed_box"),
        (None, [], "malformed_box"),
    ],
)
def test_an_odd_box_is_mended_or_dropped_and_flagged(box: object, expected: list[list[int]], flag: str | None) -> None:
    good = {"bbox_2d": [0, 0, 28, 56], "label": "good"}
    annotation = parse_answer(json.dumps({"objects": [{"bbox_2d": box, "label": "x"}, good]}), 280, 560)
    assert [item["bbox"] for item in annotation.objects] == [*expected, [0, 0, 100, 100]]
    assert annotation.flags == ([flag] if flag else [])


def test_an_answer_of_which_no_object_is_usable_is_unparsable() -> None:
    with pytest.raises(UnparsableAnswer, match="none of 2 objects is usable: degenerate, malformed_object"):
        parse_answer('{"objects": [{"bbox_2d": [5, 5, 5, 5], "label": "x"}, "cat"]}', 280, 560)


def test_a_hostile_text_takes_a_bounded_time() -> None:
    started = time.monotonic()
    with contextlib.suppress(UnparsableAnswer):
        parse_answer('{"a"' * 100_000, 280, 560)
    assert time.monotonic() - started < 60


def test_a_lone_surrogate_does_not_reach_the_output() -> None:
    annotation = parse_answer(
        '{"rationale": "\\ud83d", "objects": [{"bbox_2d": [1, 1, 99, 99], "label": "\\udc00"}]}', 280, 560
    )
    json.dumps([annotation.rationale, annotation.objects], ensure_ascii=False).encode()


@given(st.integers(28, 6000), st.integers(28, 6000), st.data())
def test_every_coordinate_is_within_one_thousandth(width: int, height: int, data: st.DataObject) -> None:
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    bbox, flags = to_thousandths([x1, y1, x2, y2], width, height)
    exact = [x1 / width * 1000, y1 / height * 1000, x2 / width * 1000, y2 / height * 1000]
    assert all(abs(ours - true) <= 0.5 for ours, true in zip(bbox, exact, strict=True))
    assert flags == []


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["objects", "bbox_2d", "label", "rationale", "x"]), inner)
    ),
)


@given(st.text() | json_like.map(json.dumps) | json_like.map(repr))
def test_no_text_raises_anything_but_unparsable(text: str) -> None:
    try:
        annotation = parse_answer(text, 1000, 700)
    except UnparsableAnswer:
        return
    for item in annotation.objects:
        x1, y1, x2, y2 = item["bbox"]
        assert 0 <= x1 < x2 <= 1000
        assert 0 <= y1 < y2 <= 1000
        assert isinstance(item["name"], str)
