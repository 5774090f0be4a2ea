"""Fingerprint, prompts and request bodies."""

import base64
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from blocks import AnnotationRecipe
from vllm_annotate.errors import UsageError
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.recipe.families import FAMILIES, Family
from vllm_annotate.recipe.fingerprint import fingerprint, recipe_settings
from vllm_annotate.recipe.prompts import answer_schema, system_prompt
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.storage.yaml_fields import read_fields

MODEL = "qwen2.5-vl-7b"
IMAGE = PreparedImage(b"\xff\xd8jpeg", 640, 480, 644, 476)


def body(recipe: Recipe, caption: str = "a cat") -> dict[str, Any]:
    return dict(json.loads(RequestTemplate(recipe, FAMILIES["qwen2.5-vl"], "m").body(caption, IMAGE.url())))


def test_an_empty_system_prompt_sends_no_system_message() -> None:
    roles = [[message["role"] for message in body(Recipe(system_prompt=text))["messages"]] for text in (None, "")]
    assert roles == [["system", "user"], ["user"]]


def test_a_seed_is_sent_only_if_there_is_one() -> None:
    assert "seed" not in body(Recipe())
    assert [body(Recipe(seed=seed))["seed"] for seed in (0, 7)] == [0, 7]


def test_without_a_seed_the_recipe_is_the_one_of_earlier_versions() -> None:
    assert "seed" not in recipe_settings(Recipe(), MODEL)


@pytest.mark.parametrize(
    "change",
    [
        {"language": "zh"}, {"system_prompt": "Look."}, {"user_prompt": "{caption}!"}, {"structured_output": False},
        {"temperature": 0.5}, {"top_p": 0.9}, {"max_tokens": 100}, {"max_objects": 7}, {"min_visual_tokens": 4},
        {"max_visual_tokens": 400}, {"jpeg_quality": 95}, {"family": "qwen3-vl"}, {"repetition_detection": False},
        {"reasks": 0}, {"seed": 0},
    ],
)  # fmt: skip
def test_every_setting_and_the_model_change_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(Recipe(**change), MODEL) != fingerprint(Recipe(), MODEL) != fingerprint(Recipe(), MODEL + "-2")


def test_the_fingerprint_does_not_depend_on_field_order_or_on_being_a_block() -> None:
    one = Recipe(temperature=0.5, language="zh")
    other = AnnotationRecipe(language="zh", temperature=0.5)
    assert fingerprint(one, MODEL) == fingerprint(other, MODEL)


def test_the_fingerprint_of_a_recipe_stays_what_it_was() -> None:
    fixed = Recipe(system_prompt="Look.", user_prompt="{caption}")
    assert (
        fingerprint(fixed, MODEL) == "95438950019f"
    )  # a change here orphans existing outputs: add it to the changelog


def test_auto_and_the_family_that_it_finds_have_one_fingerprint() -> None:
    assert fingerprint(Recipe(), MODEL) == fingerprint(Recipe(family="qwen2.5-vl"), MODEL)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_family_is_prompted_in_its_own_form(family: Family, language: Literal["en", "zh"]) -> None:
    recipe = Recipe(language=language)
    prompt = system_prompt(recipe, family)
    assert "{" not in prompt.replace('{"', "").replace("{x", "")
    assert f'"{family.box_key}": [' in prompt
    assert ("[y1, x1, y2, x2]" in prompt) == family.y_first
    assert prompt.index("rationale") < prompt.index(family.box_key)
    assert {"pixels": ("pixel", "像素"), "999ths": ("999", "999"), "unit": ("0 to 1,", "0 到 1 ")}.get(
        family.space, ("1000", "1000")
    )[language == "zh"] in prompt
    properties = answer_schema(recipe, family)["properties"]
    assert list(properties) == ["rationale", "objects"]
    assert family.box_key in properties["objects"]["items"]["properties"]


def test_later_attempts_have_higher_temperatures() -> None:
    recipe = Recipe(temperature=0.5)
    assert [recipe.temperature_of(attempt) for attempt in (1, 2, 3, 4)] == [0.5, 0.5, 0.6, 0.9]


def test_the_image_budget_counts_the_familys_tokens() -> None:
    recipe = Recipe(min_visual_tokens=10, max_visual_tokens=100)
    assert recipe.image_budget(FAMILIES["qwen2.5-vl"]).max_pixels == 100 * 28 * 28
    assert recipe.image_budget(FAMILIES["qwen3-vl"]).max_pixels == 100 * 32 * 32


def test_the_static_prompt_comes_first_and_the_caption_last() -> None:
    system, user = body(Recipe())["messages"]
    assert system["role"] == "system"
    assert "cat" not in system["content"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert user["content"][1]["text"] == "Caption: a cat"


def test_a_caption_with_braces_is_sent_unchanged() -> None:
    assert body(Recipe(), "{x} {caption} {{")["messages"][1]["content"][1]["text"] == "Caption: {x} {caption} {{"


def test_the_image_is_sent_as_a_data_uri_without_a_cache_key() -> None:
    part = body(Recipe())["messages"][1]["content"][0]
    assert base64.b64decode(part["image_url"]["url"].removeprefix("data:image/jpeg;base64,")) == IMAGE.content
    assert "uuid" not in part


def test_structured_output_bounds_every_string_and_array() -> None:
    schema = json.dumps(body(Recipe(max_objects=9))["response_format"]["json_schema"]["schema"])
    assert schema.count('"string"') == schema.count("maxLength")
    assert schema.count('"array"') == schema.count("maxItems")
    assert '"maxItems": 9' in schema
    assert "response_format" not in body(Recipe(structured_output=False))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 3},
        {"max_visual_tokens": 8, "min_visual_tokens": 9},
        {"user_prompt": "no placeholder"},
        {"language": "fr"},
    ],
)
def test_a_bad_setting_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe(**bad)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("temprature: 0.5", "temprature"), ("- a", "mapping"), ("a: [", "not YAML"), (None, "cannot be read")],
)
def test_a_bad_recipe_file_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        read_fields(path, "recipe", Recipe)


def test_a_recipe_file_gives_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("language: zh\nmax_visual_tokens: 200\n")
    assert AnnotationRecipe(**read_fields(path, "recipe", Recipe)).max_visual_tokens == 200


class Tomorrow(Recipe):
    """A recipe of a later version."""

    min_side: int = 0
    examples: list[str] = Field(default_factory=list)


def test_a_new_field_does_not_change_the_fingerprint_while_it_has_its_default() -> None:
    model = "Qwen2.5-VL-7B"
    assert fingerprint(Recipe(), model) == "b252a1a9592d", "the fingerprint of existing outputs"
    assert fingerprint(Recipe(), f"{model}-Instruct") == "3a6237829e22"
    assert fingerprint(Tomorrow(), model) == "b252a1a9592d"
    assert fingerprint(Tomorrow(temperature=0.5), model) == fingerprint(Recipe(temperature=0.5), model)
    used = {fingerprint(recipe, model) for recipe in (Tomorrow(min_side=1), Tomorrow(examples=["x"]), Tomorrow())}
    assert len(used) == 3
    assert "min_side" not in recipe_settings(Tomorrow(), model)
    assert recipe_settings(Tomorrow(min_side=1), model)["min_side"] == 1
