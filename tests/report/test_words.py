"""The page in the language of the recipe."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_page import REPORT
from vllm_annotate.grounding.quality import Quality
from vllm_annotate.report import rendering
from vllm_annotate.report.about import language_of, recipe_in_words
from vllm_annotate.report.gallery import Example
from vllm_annotate.report.page import page
from vllm_annotate.report.report import Report
from vllm_annotate.report.words import CHINESE, translator
from vllm_annotate.telemetry.bottleneck import ADVICE, TITLES

TEMPLATES = sorted((Path(rendering.__file__).parent / "templates").glob("*.j2"))
SETTINGS: dict[str, Any] = {
    "language": "en", "system_prompt": None, "user_prompt": None, "structured_output": True, "temperature": 0.0,
    "max_tokens": 1536, "max_objects": 50, "min_visual_tokens": 128, "max_visual_tokens": 1280,
}  # fmt: skip


def report_with(**settings: Any) -> Report:
    maker = {"recipe": "r", "first": "2026-01-01", "last": "2026-01-01", "model": "m", "settings": SETTINGS | settings}
    return REPORT.model_copy(update={"made_by": [maker]})


def test_all_words_of_the_templates_are_in_both_languages() -> None:
    words = {word for path in TEMPLATES for word in re.findall(r'say\("([^"{]+)"', path.read_text())}
    assert len(words) > 30
    assert words - set(CHINESE) == set()
    assert {*TITLES.values(), *ADVICE.values()} - set(CHINESE) == set()
    areas = {f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")}
    assert areas - set(CHINESE) == set()


def test_numbers_keep_their_places() -> None:
    say = translator("zh")
    assert say("running 8, waiting 3") == "运行中 8，等待中 3"
    assert say("in flight 11 of at most 1,200; GPU 97 %") == "进行中 11，上限 1,200；GPU 97 %"
    assert say("1,234 more images are omitted to keep this page under 10 MB.").startswith("另有 1,234 张")
    assert say("something new 7") == "something new 7"
    assert translator("en")("running 8, waiting 3") == "running 8, waiting 3"


@pytest.mark.parametrize(
    ("settings", "language"),
    [
        ({}, "en"),
        ({"language": "zh"}, "zh"),
        ({"system_prompt": "请列出图中的每一个物体,并给出 JSON: {\"objects\": []}"}, "zh"),
        ({"system_prompt": "List every object in the image.", "language": "zh"}, "en"),
        ({"user_prompt": "描述:{caption}", "system_prompt": ""}, "zh"),
        ({"system_prompt": "List objects. Signs such as 出口 count too.", "user_prompt": "{caption}"}, "en"),
    ],
)  # fmt: skip
def test_the_page_speaks_the_language_of_the_prompts(settings: dict[str, Any], language: str) -> None:
    report = report_with(**settings)
    assert language_of(report) == language
    row = {"image_path": "a.jpg", "objects": [{"name": "cat", "bbox": [1, 1, 500, 500]}], "flags": ["swapped"]}
    quality = Quality()
    quality.add(row)
    report = report.model_copy(update={"quality": quality.summary()})
    text = page(report, [], [Example(row, None)], "t").decode()
    assert f'<html lang="{language}">' in text
    assert ("质量" in text) == ("瓶颈" in text) == (language == "zh")
    assert ("Quality" in text) == ("Bottleneck" in text) == (language == "en")


def test_the_recipe_is_told_in_words() -> None:
    text = ", ".join(recipe_in_words(report_with(), translator("en")))
    assert text == (
        "the built-in English prompt, answers follow a JSON schema, temperature 0, at most 1,536 tokens and "
        "50 objects, images of 128 to 1,280 visual tokens, recipe r"
    )
    assert recipe_in_words(REPORT, translator("en")) == ["recipe r"], "of an output without makers"
