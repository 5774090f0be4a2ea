"""Model text → rationale and boxes 0–1000, for every family and every kind of bad text."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stand_in.ugly_answers import HEIGHT, WIDTH, Ugly, corpus
from vllm_annotate.errors import UnparsableAnswer, UsageError
from vllm_annotate.grounding.parse import Annotation, parse_answer
from vllm_annotate.recipe.families import FAMILIES, Family, resolve_family

EXAMPLES = settings().max_examples  # 100; in `make test-fuzz` 5,000
HOSTILE_EXAMPLES = 200 if EXAMPLES <= 100 else min(25_000, 10 * EXAMPLES)
QWEN = FAMILIES["qwen2.5-vl"]
CLEAN = {"rationale": "一只猫在左边。", "objects": [{"bbox_2d": [28, 56, 280, 420], "label": "猫"}]}


def parse(text: str, family: Family = QWEN, **options: Any) -> Annotation:
    return parse_answer(text, family, 280, 560, **options)


def test_a_clean_answer_keeps_its_text_and_gets_boxes_0_to_1000() -> None:
    annotation = parse(json.dumps(CLEAN, ensure_ascii=False))
    assert annotation == Annotation("一只猫在左边。", [{"name": "猫", "bbox": [100, 100, 1000, 750]}], [], "json")


def outcome(case: Ugly) -> tuple[str, Annotation | None]:
    """Returns `right`, `flagged` (not right, but flagged) or `wrong` (not right, and not flagged)."""
    try:
        annotation = parse_answer(case.text, FAMILIES[case.family], WIDTH, HEIGHT, truncated=case.truncated)
    except UnparsableAnswer:
        return ("right" if case.boxes is None else "flagged"), None
    boxes = {item["name"]: item["bbox"] for item in annotation.objects}
    if boxes == case.boxes and case.flags <= set(annotation.flags):
        return "right", annotation
    return ("flagged" if annotation.flags else "wrong"), annotation


def test_98_in_100_bad_texts_are_parsed_right_and_none_is_wrong_without_a_flag() -> None:
    cases = corpus()
    outcomes = {case.defect: outcome(case) for case in cases}
    for disease, (verdict, annotation) in outcomes.items():
        if verdict != "right":
            print(f"{verdict}: {disease}: {annotation}")
    verdicts = [verdict for verdict, _ in outcomes.values()]
    assert len(cases) == len(outcomes) >= 60
    assert verdicts.count("wrong") == 0
    assert verdicts.count("right") >= 0.98 * len(cases)
    print(f"{len(cases)} ugly answers: {verdicts.count('right')} right, {verdicts.count('flagged')} flagged")


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        (json.dumps(CLEAN), "json"),
        (f"```json\n{json.dumps(CLEAN)}\n```", "repaired"),
        ("<ref>cat</ref><box>[[1, 2, 300, 400]]</box>", "tags"),
    ],
)
def test_the_stage_that_succeeded_is_reported(text: str, stage: str) -> None:
    assert parse(text).stage == stage


def test_a_truncated_answer_loses_its_last_object_and_is_flagged() -> None:
    objects = [{"bbox_2d": [n, n, n + 50, n + 50], "label": f"{n}"} for n in (10, 100)]
    annotation = parse(json.dumps({"objects": objects}), truncated=True)
    assert [item["name"] for item in annotation.objects] == ["10"]
    assert annotation.flags == ["truncated"]


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl"),
        ("Qwen/Qwen2.5-VL-32B-Instruct-AWQ", "qwen2.5-vl"),
        ("qwen2_5-vl-mine", None),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3-vl"),
        ("OpenGVLab/InternVL3-8B", "internvl"),
        ("zai-org/GLM-4.1V-9B-Thinking", "glm-v"),
        ("zai-org/GLM-4.5V", "glm-v"),
        ("openbmb/MiniCPM-V-4_5", "minicpm-v"),
        ("deepseek-ai/deepseek-vl2-small", "deepseek-vl2"),
        ("moonshotai/Kimi-VL-A3B-Instruct", "kimi-vl"),
        ("gemini-2.5-flash", "gemini"),
        ("my-finetune", None),
        ("qwen2-vl-to-internvl-distilled", None),
        ("Qwen/Qwen2.5-7B-Instruct", None),
    ],
)
def test_auto_finds_the_family_in_the_models_name_and_does_not_guess(model: str, family: str | None) -> None:
    if family is not None:
        assert resolve_family("auto", model).name == family
        return
    with pytest.raises(UsageError, match="set the recipe's family"):
        resolve_family("auto", model)
    assert resolve_family("internvl", model).name == "internvl"


def native(family: Family, box: list[float], size: tuple[int, int]) -> list[float]:
    """Returns a box in shares of the image as a perfect model of the family writes it."""
    across, down = family.denominators(*size)
    numbers = [share * scale for share, scale in zip(box, (across, down, across, down), strict=True)]
    rounded: list[float] = [round(n, 3) for n in numbers] if family.space == "unit" else [round(n) for n in numbers]
    return [rounded[1], rounded[0], rounded[3], rounded[2]] if family.y_first else rounded


def native_json(family: Family, box: list[float], name: str) -> str:
    return json.dumps({"rationale": "r", "objects": [{family.box_key: box, family.name_key: name}]})


TAG_FORMS = {
    "qwen2-vl": "<|object_ref_start|>{name}<|object_ref_end|><|box_start|>({0},{1}),({2},{3})<|box_end|>",
    "internvl": "<ref>{name}</ref><box>[[{0}, {1}, {2}, {3}]]</box>",
    "glm-v": "{name} <|begin_of_box|>[[{0}, {1}, {2}, {3}]]<|end_of_box|>",
    "minicpm-v": "<ref>{name}</ref><box>{0} {1} {2} {3}</box>",
    "deepseek-vl2": "<|ref|>{name}<|/ref|><|det|>[[{0}, {1}, {2}, {3}]]<|/det|>",
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
@given(st.integers(28, 6000), st.integers(28, 6000), st.data())
def test_boxes_make_the_round_trip_through_every_familys_native_text(
    family: Family, width: int, height: int, data: st.DataObject
) -> None:
    share = st.floats(0, 1)
    x1, x2 = sorted((data.draw(share), data.draw(share)))
    y1, y2 = sorted((data.draw(share), data.draw(share)))
    texts = [native_json(family, native(family, [x1, y1, x2, y2], (width, height)), "猫")]
    if family.name in TAG_FORMS:
        texts.append(TAG_FORMS[family.name].format(*native(family, [x1, y1, x2, y2], (width, height)), name="猫"))
    across, down = family.denominators(width, height)
    # We round to thousandths, the family to its own steps.
    costs = [0.5 / across, 0.5 / down] * 2 if family.space != "unit" else [0.0005] * 4
    for text in texts:
        try:
            annotation = parse_answer(text, family, width, height)
        except UnparsableAnswer:
            assert min(x2 - x1, y2 - y1) < 0.005 + 2 * max(costs) + 0.001, "only degenerate boxes may be removed"
            continue
        assert annotation.objects[0]["name"] == "猫"
        for ours, exact, cost in zip(annotation.objects[0]["bbox"], (x1, y1, x2, y2), costs, strict=True):
            assert abs(ours - exact * 1000) <= 1 + cost * 1000


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("a <script> | cat", "a <script> | cat"),
        ("<exit>", "<exit>"),
        ("<b>SALE</b> sign", "<b>SALE</b> sign"),
        ("<ref>cat</ref>", "cat"),
        ("<|object_ref_start|>猫<|object_ref_end|>", "猫"),
        ("<|ref|>cat<|/ref|>", "cat"),
    ],
)
def test_a_name_loses_the_tokens_of_models_and_keeps_other_words_in_angle_brackets(label: str, name: str) -> None:
    [found] = parse(json.dumps({"objects": [{"bbox_2d": [10, 10, 200, 200], "label": label}]})).objects
    assert found["name"] == name


def test_a_lone_surrogate_does_not_reach_the_output() -> None:
    answer = '{"rationale": "\\ud83d", "objects": [{"bbox_2d": [1, 1, 99, 99], "label": "\\udc00"}]}'
    annotation = parse(answer)
    assert annotation.rationale == annotation.objects[0]["name"] == "?"


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["objects", "bbox_2d", "label", "rationale", "x"]), inner)
    ),
)
pieces = st.lists(
    st.sampled_from(
        ["<ref>", "</ref>", "<box>", "</box>", "<think>", "</think>", "(1,2),(30,40)", "[[1,2,3,4]]", "{", "}", "[",
         "]", '"objects":', '"bbox_2d":', ",", "：", "“", "```json", "猫", "1e999", "-", "\\u", "\0"]
    )
).map("".join)  # fmt: skip


HOSTILE = {"text": st.text(), "pieces": pieces, "json": json_like.map(json.dumps), "python": json_like.map(repr)}


@pytest.mark.parametrize("kind", HOSTILE)  # separate tests, so that they run in parallel
@settings(max_examples=HOSTILE_EXAMPLES)
@given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)), truncated=st.booleans())
@pytest.mark.timeout(3600)
def test_no_text_raises_anything_but_unparsable(kind: str, data: st.DataObject, family: str, truncated: bool) -> None:
    assert_nothing_else_is_raised(data.draw(HOSTILE[kind]), family, truncated)


def test_a_text_that_fails_an_assertion_of_json_repair_raises_nothing_else() -> None:
    assert_nothing_else_is_raised("{“```json0```", "deepseek-vl2", truncated=False)


def assert_nothing_else_is_raised(text: str, family: str, truncated: bool) -> None:
    """Parses the text, and checks that all boxes are inside the image."""
    try:
        annotation = parse_answer(text, FAMILIES[family], 1000, 700, truncated=truncated)
    except UnparsableAnswer:
        return
    for item in annotation.objects:
        x1, y1, x2, y2 = item["bbox"]
        assert 0 <= x1 < x2 <= 1000
        assert 0 <= y1 < y2 <= 1000
        assert isinstance(item["name"], str)
