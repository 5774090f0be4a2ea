"""Answers in any form: each is read right, and none that is wrong or incomplete looks clean."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stand_in.ugly_answers import HEIGHT, WIDTH
from vllm_annotate.errors import UnparsableAnswer
from vllm_annotate.grounding.parse import Annotation, parse_answer
from vllm_annotate.recipe.families import FAMILIES

FORMS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("answer_forms.yaml").read_text())
THOUSANDTHS = FAMILIES["thousandths"]


def parse(text: str, family: str = "thousandths", **options: Any) -> Annotation:
    return parse_answer(text, FAMILIES[family], WIDTH, HEIGHT, **options)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["form"])
def test_a_form_in_which_models_answer_is_read_right(form: dict[str, Any]) -> None:
    family, truncated = form.get("family", "qwen2.5-vl"), form.get("truncated", False)
    if form["objects"] is None:
        with pytest.raises(UnparsableAnswer):
            parse(form["text"], family, truncated=truncated)
        return
    annotation = parse(form["text"], family, truncated=truncated)
    assert [[item["name"], item["bbox"]] for item in annotation.objects] == form["objects"]
    assert annotation.rationale == form.get("rationale", annotation.rationale)
    assert annotation.flags == form.get("flags", [])


Objects = list[tuple[str, list[int]]]
words = st.text("abc déf猫灯，。：「」“”'\"()[]{}:,<>|0123456789", min_size=1, max_size=12).filter(
    lambda text: text == text.strip() and "<" not in text and any(letter in text for letter in "abcdéf猫灯")
)
plain_words = st.text("abcdéf猫灯招牌", min_size=1, max_size=8)
sides = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted).filter(lambda pair: pair[1] - pair[0] >= 5)
boxes = st.tuples(sides, sides).map(lambda pairs: [pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]])


def objects_named(names: st.SearchStrategy[str]) -> st.SearchStrategy[Objects]:
    return st.lists(st.tuples(names, boxes), min_size=1, max_size=5, unique_by=lambda named: named[0])


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def items(objects: Objects, box: Callable[[list[int]], Any] = list) -> list[dict[str, Any]]:
    return [{"bbox_2d": box(corners), "label": name} for name, corners in objects]


def answer(rationale: str, objects: Objects, box: Callable[[list[int]], Any] = list) -> str:
    return dumped({"rationale": rationale, "objects": items(objects, box)})


def corners(names: str) -> Callable[[list[int]], dict[str, int]]:
    return lambda box: dict(zip(names.split(), box, strict=True))


def quoted(quotes: str, text: str) -> str:
    first, *others = text.split('"')
    return first + "".join(f"{quotes[number % 2]}{other}" for number, other in enumerate(others))


# What each writes must be read as it was, whatever words are in it.
ANY_WORDS: dict[str, Callable[[str, Objects], str]] = {
    "as asked": answer,
    "with line breaks": lambda r, o: json.dumps(json.loads(answer(r, o)), indent=2),
    "in a fence": lambda r, o: f"```json\n{answer(r, o)}\n```",
    "in prose": lambda r, o: f"Here it is:\n{answer(r, o)}\nAnything else?",
    "in Chinese prose": lambda r, o: f"标注结果如下：\n{answer(r, o)}\n请查收。",
    "after thinking": lambda r, o: f'<think>{{"objects": [] }} or so?</think>\n\n{answer(r, o)}',
    "in a string": lambda r, o: dumped(answer(r, o)),
    "in a list": lambda r, o: f"[{answer(r, o)}]",
    "under a key": lambda r, o: f'{{"result": {answer(r, o)}}}',
    "objects in a string": lambda r, o: dumped({"rationale": r, "objects": dumped(items(o))}),
    "two fences": lambda r, o: f"```json\n{dumped({'rationale': r})}\n```\n```json\n{dumped(items(o))}\n```",
    "lines": lambda r, o: "\n".join(map(dumped, [{"rationale": r}, *items(o)])),
    "pairs": lambda r, o: answer(r, o, lambda box: [box[:2], box[2:]]),
    "box in a list": lambda r, o: answer(r, o, lambda box: [box]),
    "text": lambda r, o: answer(r, o, lambda box: ", ".join(map(str, box))),
    "text in brackets": lambda r, o: answer(r, o, str),
    "text in pairs": lambda r, o: answer(r, o, lambda box: "({},{}),({},{})".format(*box)),
    "tokens in a string": lambda r, o: answer(r, o, lambda box: "<|box_start|>({},{}),({},{})<|box_end|>".format(*box)),
    "x1": lambda r, o: answer(r, o, corners("x1 y1 x2 y2")),
    "xmin": lambda r, o: answer(r, o, corners("xmin ymin xmax ymax")),
    "left": lambda r, o: answer(r, o, corners("left top right bottom")),
    "a map": lambda r, o: dumped({"rationale": r, "objects": dict(o)}),
    "a map to objects": lambda r, o: dumped({"rationale": r, "objects": {n: {"bbox": b} for n, b in o}}),
    "names and boxes": lambda r, o: dumped({"rationale": r, "labels": [n for n, _ in o], "bboxes": [b for _, b in o]}),
}
# Forms that JSON does not allow: words that look like JSON may be read in several ways.
PLAIN_WORDS: dict[str, Callable[[str, Objects], str]] = {
    "single quotes": lambda r, o: str(json.loads(answer(r, o))),
    "full-width": lambda r, o: answer(r, o).replace('": ', '"：').replace(", ", "，"),
    "full-width quotes": lambda r, o: quoted("“”", answer(r, o)),
    "corner quotes": lambda r, o: quoted("「」", answer(r, o)).replace("，", "、"),
    "no closing brackets": lambda r, o: answer(r, o)[:-2],
    "a fence that stays open": lambda r, o: f"```json\n{answer(r, o)[:-1]}",
    "trailing commas": lambda r, o: answer(r, o).replace("}]}", "},],}"),
    "tokens": lambda r, o: (
        answer(r, o, lambda box: f"@({box[0]},{box[1]}),({box[2]},{box[3]})@")
        .replace('"@', "<|box_start|>")
        .replace('@"', "<|box_end|>")
    ),
    "half a draft before": lambda r, o: f'Maybe {{"objects": [{{"bbox_2d": [0, 0, … no.\n{answer(r, o)}',
}


@pytest.mark.parametrize("form", ANY_WORDS)
@settings(max_examples=settings().max_examples // 4)
@given(rationale=words, objects=objects_named(words))
def test_an_answer_is_read_as_it_was_written(form: str, rationale: str, objects: Objects) -> None:
    assert_reads(ANY_WORDS[form](rationale, objects), rationale, objects)


@pytest.mark.parametrize("form", PLAIN_WORDS)
@settings(max_examples=settings().max_examples // 4)
@given(rationale=plain_words, objects=objects_named(plain_words))
def test_an_answer_in_broken_json_is_read_as_it_was_meant(form: str, rationale: str, objects: Objects) -> None:
    assert_reads(PLAIN_WORDS[form](rationale, objects), rationale, objects)


def assert_reads(text: str, rationale: str, objects: Objects) -> None:
    annotation = parse(text)
    assert [(item["name"], item["bbox"]) for item in annotation.objects] == objects
    assert annotation.rationale == rationale


BETWEEN = ["", "\n", "\n\nNo, wait.\n", "\n```\n```json\n", "。不对，应该是：", "</answer>"]
WRITE = [answer, lambda r, o: str(json.loads(answer(r, o))), lambda r, o: f"```json\n{answer(r, o)}\n```"]


@given(
    one=st.tuples(plain_words, objects_named(plain_words)), other=st.tuples(plain_words, objects_named(plain_words)),
    between=st.sampled_from(BETWEEN), first=st.sampled_from(WRITE), second=st.sampled_from(WRITE),
)  # fmt: skip
def test_two_answers_that_differ_are_never_clean_and_the_last_one_counts(
    one: tuple[str, Objects], other: tuple[str, Objects], between: str, first: Any, second: Any
) -> None:
    assume(one != other)
    annotation = parse(first(*one) + between + second(*other))
    assert "several_answers" in annotation.flags
    assert annotation.rationale == other[0]
    assert [(item["name"], item["bbox"]) for item in annotation.objects] == other[1]


@given(st.lists(st.sampled_from(['"objects"', '"rationale"', '"bbox_2d"', '"label"']), max_size=3), st.data())
def test_a_repeated_key_is_flagged_and_every_value_is_read(keys: list[str], data: st.DataObject) -> None:
    objects = data.draw(objects_named(plain_words))
    text = ", ".join(f'"bbox_2d": {box}, "label": {dumped(name)}' for name, box in objects)
    annotation = parse(f'{{"rationale": "r", "objects": [{{{text}}}]}}')
    assert [(item["name"], item["bbox"]) for item in annotation.objects] == objects
    assert ("repeated_key" in annotation.flags) == (len(objects) > 1)


THREE = [("cat", [50, 100, 500, 500]), ("big lamp", [550, 50, 950, 950]), ("bowl", [1, 8, 30, 90])]
TWO = [("猫", [50, 100, 500, 500]), ("灯", [550, 50, 950, 950])]
SPOILED = [
    answer("The cat sits left.", THREE),
    json.dumps(json.loads(answer("猫在左边，很大。", TWO)), indent=1, ensure_ascii=False),
    f"```json\n{dumped(items(TWO))}\n```",
]


@pytest.mark.parametrize("text", SPOILED, ids=["one line", "lines", "fence"])
@pytest.mark.parametrize("instead", ["", *'"[]{}:,'], ids=lambda instead: instead or "nothing")
def test_no_wrong_mark_in_json_costs_a_box_or_the_rationale_without_a_flag(text: str, instead: str) -> None:
    right = parse(text)
    for at, mark in enumerate(text):
        if mark not in '"[]{}:,' or mark == instead:
            continue
        with contextlib.suppress(UnparsableAnswer):
            annotation = parse(text[:at] + instead + text[at + 1 :])
            found = [item["bbox"] for item in annotation.objects], bool(annotation.rationale)
            expected = [item["bbox"] for item in right.objects], bool(right.rationale)
            assert annotation.flags or found == expected, text[:at] + instead + text[at + 1 :]


@pytest.mark.parametrize("spoiled", ['[{"bbox_2d"]: ', '[{"bbox_2d": ]', '[{]"bbox_2d": '])
def test_a_wrong_bracket_does_not_end_the_list(spoiled: str) -> None:
    text = dumped(items(TWO)).replace('[{"bbox_2d": ', spoiled)
    assert [item["bbox"] for item in parse(f"```json\n{text}\n```").objects] == [box for _, box in TWO]


LONG = [(f"猫{n}", [n, n, n + 100 + n % 7, n + 300]) for n in range(700)]


def test_clean_json_of_many_objects_is_read_to_its_end() -> None:
    text = answer("r" * 2000, LONG)
    assert len(text) > 36_000
    for whole in (text, f"<think>{'So. ' * 20_000}</think>{text}", f"```json\n{text}\n```"):
        assert_reads(whole, "r" * 2000, LONG)
        assert "truncated" not in parse(whole).flags


def test_thinking_of_any_length_is_no_part_of_the_answer() -> None:
    text = f"<think>{'The cat is left of the lamp {. ' * 2_000}</think>{answer('r', LONG[:3])}".replace('"', "'")
    assert_reads(text, "r", LONG[:3])


def test_broken_json_that_is_too_long_to_repair_is_flagged() -> None:
    annotation = parse(answer("r", LONG).replace("}]}", "},],}"))
    assert annotation.objects[:100] == [{"name": name, "bbox": box} for name, box in LONG[:100]]
    assert {"ignored_text", "truncated"} <= set(annotation.flags)


def test_a_text_beyond_any_context_is_cut_and_flagged() -> None:
    annotation = parse("\n".join(map(dumped, items(LONG * 60))))
    assert "truncated" in annotation.flags


@pytest.mark.parametrize(
    "left_out",
    [
        "The dog is at [700, 700, 800, 800]. {}",
        '{} {{"note": "the dog is missing"}}',
        "{} <ref>cat</ref><box>[[700, 700, 800, 800]]</box>",
        "Or (700,700),(800,800)? {}",
    ],
)
def test_what_is_left_out_is_flagged(left_out: str) -> None:
    cat = [("cat", [50, 100, 500, 500])]
    annotation = parse(left_out.format(answer("r", cat)))
    assert annotation.objects == [{"name": "cat", "bbox": [50, 100, 500, 500]}]
    assert set(annotation.flags) & {"ignored_text", "several_answers"}


@pytest.mark.parametrize(
    "unit", ["{", '{"a"', "[", "['", '"}{', ':"', '}"{"', "{} ", "[[1,2],", "{'a': 1} ", "（", "<box>", "\n"]
)
@pytest.mark.parametrize("frame", ["{}", '{{"objects": [{}]}}'])
def test_a_megabyte_of_hostile_text_takes_seconds_at_most(unit: str, frame: str) -> None:
    text = frame.format(unit * (1_000_000 // len(unit)))
    started = time.process_time()
    with contextlib.suppress(UnparsableAnswer):
        parse(text)
    assert time.process_time() - started < 10
