"""What decides an answer: prompt, schema, sampling and image budget; its fingerprint; the request it makes."""

import hashlib
import json
import secrets
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field, field_validator, model_validator

from vllm_annotate.images.prepare import ImageBudget, PreparedImage
from vllm_annotate.recipe.families import SPACES, Family, FamilyName, resolve_family

# {space}, {box}, {corners} and {name} are filled in by the model's family.
SYSTEM_PROMPTS = {
    "en": (
        "You annotate images for training a text-to-image layout model. Look at the image, then answer with one JSON "
        "object and nothing else:\n"
        '{"rationale": "…", "objects": [{"{box}": {corners}, "{name}": "…"}]}\n'
        "First the rationale: two to four sentences on where things are, how large they are and how they stand to one "
        "another (left of, above, in front of, inside). Then the objects: every distinct thing that the caption names "
        "or that matters for the layout, each once, with a short label and its box {space}, top left corner first. "
        "Write in English."
    ),
    "zh": (
        "你为训练文生图布局模型的数据标注图片。请观察图片,只输出一个 JSON 对象,不要输出其他内容:\n"
        '{"rationale": "…", "objects": [{"{box}": {corners}, "{name}": "…"}]}\n'
        "先写 rationale:用两到四句话说明画面中各物体的位置、大小以及相互关系(左右、上下、前后、内外)。"
        "再写 objects:列出描述中提到的或对布局重要的每一个物体,各列一次,给出简短的名称 {name},"
        "以及它的坐标框 {box}({space},先左上角,后右下角)。请用中文书写。"
    ),
}
USER_PROMPTS = {"en": "Caption: {caption}", "zh": "图片描述:{caption}"}

# Sampling temperatures of the tries after the first, and vLLM's stop for what repeats: an object that is written out
# takes about 30 tokens, and no honest answer writes the same 8 to 80 tokens five times in a row.
REASK_TEMPERATURES = (0.3, 0.6, 0.9, 1.2)
REPETITION_DETECTION = {"min_pattern_size": 8, "max_pattern_size": 80, "min_count": 5}

# Always part of the fingerprint, as in the first outputs. A field that is added later is part of it where it is not at
# its default: half-finished outputs of earlier versions go on.
FIRST_FIELDS = frozenset((
    "family", "language", "system_prompt", "user_prompt", "structured_output", "temperature", "top_p", "max_tokens",
    "repetition_detection", "reasks", "max_objects", "min_visual_tokens", "max_visual_tokens", "jpeg_quality",
))  # fmt: skip


class Recipe(BaseModel):
    """Everything that decides an answer, and nothing else."""

    family: FamilyName = Field(
        default="auto",
        title="Model family",
        description="Decides the space and form of boxes; auto goes by the served model's name and refuses to guess.",
    )
    language: Literal["en", "zh"] = Field(
        default="en", title="Language", description="Language of the built-in prompts, and so of the answers."
    )
    system_prompt: str | None = Field(
        default=None, title="System prompt", description="Replaces the built-in instructions when set."
    )
    user_prompt: str | None = Field(
        default=None,
        title="User prompt",
        description="Replaces the built-in text that follows the image; {caption} stands for the row's caption.",
    )
    structured_output: bool = Field(
        default=True,
        title="Structured output",
        description="Let the server hold the model to the answer's JSON schema.",
    )
    temperature: float = Field(default=0.0, ge=0, le=2, title="Temperature", description="0 is greedy decoding.")
    top_p: float = Field(default=1.0, gt=0, le=1, title="Top p", description="Nucleus sampling; 1 is off.")
    max_tokens: int = Field(
        default=1536, ge=16, title="Max tokens", description="Longest answer in tokens; longer ones are truncated."
    )
    repetition_detection: bool = Field(
        default=True, title="Repetition detection", description="Let vLLM stop an answer that repeats itself."
    )
    reasks: int = Field(
        default=2,
        ge=0,
        le=len(REASK_TEMPERATURES),
        title="Re-asks",
        description="How often an unparsable, truncated or looping answer is asked again, hotter each time.",
    )
    max_objects: int = Field(default=50, ge=1, title="Max objects", description="Most objects an answer may list.")
    min_visual_tokens: int = Field(
        default=128,
        ge=4,
        title="Min visual tokens",
        description="Smaller images are enlarged to this budget (28 × 28 pixels a token, 32 × 32 for Qwen3-VL).",
    )
    max_visual_tokens: int = Field(
        default=1280, ge=4, title="Max visual tokens", description="Larger images are reduced to this budget."
    )
    jpeg_quality: int = Field(default=90, ge=50, le=100, title="JPEG quality", description="Of re-encoded images.")

    @field_validator("user_prompt")
    @classmethod
    def _only_a_known_placeholder(cls, value: str | None) -> str | None:
        if value is not None and "{caption}" not in value:
            raise ValueError(f"user_prompt {value!r:.80} has no {{caption}}: add it where the caption belongs")
        return value

    @model_validator(mode="after")
    def _budget_is_a_range(self) -> "Recipe":
        if self.min_visual_tokens > self.max_visual_tokens:
            raise ValueError(
                f"min_visual_tokens {self.min_visual_tokens} is above max_visual_tokens {self.max_visual_tokens}"
            )
        return self

    def image_budget(self, family: Family) -> ImageBudget:
        """The image budget in pixels, as smart_resize wants it."""
        pixels_per_token = family.factor**2
        return ImageBudget(
            min_pixels=self.min_visual_tokens * pixels_per_token,
            max_pixels=self.max_visual_tokens * pixels_per_token,
            factor=family.factor,
            jpeg_quality=self.jpeg_quality,
        )

    def temperature_of(self, attempt: int) -> float:
        """The sampling temperature of a try, the first being 1: the recipe's own, then up the ladder."""
        return self.temperature if attempt == 1 else max(self.temperature, REASK_TEMPERATURES[attempt - 2])


def recipe_settings(recipe: Recipe, model: str) -> dict[str, Any]:
    """The recipe and the model as plain data: what the fingerprint covers and `recipe.json` shows."""
    settings = {
        name: value
        for name, field in sorted(type(recipe).model_fields.items())
        if (value := getattr(recipe, name)) != field.get_default(call_default_factory=True) or name in FIRST_FIELDS
    }
    return {"model": model} | settings | {"family": resolve_family(recipe.family, model).name}


def fingerprint(recipe: Recipe, model: str) -> str:
    """12 hexadecimal digits that change whenever an answer could: settings, built-in prompts and schema alike.

    How an image is sent (its bytes, its name, by which connection) is no part of it.
    """
    family = resolve_family(recipe.family, model)
    decides = recipe_settings(recipe, model) | {
        "system_prompt": system_prompt(recipe, family),
        "user_prompt": user_prompt(recipe),
        "schema": answer_schema(recipe, family),
        "reask_temperatures": REASK_TEMPERATURES[: recipe.reasks],
        "repetition_detection": REPETITION_DETECTION if recipe.repetition_detection else None,
    }
    canonical = json.dumps(decides, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def system_prompt(recipe: Recipe, family: Family) -> str:
    """The instructions, in the family's native form: the same for every image, so vLLM's prefix cache serves them."""
    if recipe.system_prompt is not None:
        return recipe.system_prompt
    corners = "[y1, x1, y2, x2]" if family.y_first else "[x1, y1, x2, y2]"
    prompt = SYSTEM_PROMPTS[recipe.language].replace("{corners}", corners)
    prompt = prompt.replace("{box}", family.box_key).replace("{name}", family.name_key)
    return prompt.replace("{space}", SPACES[family.space][recipe.language])


def user_prompt(recipe: Recipe) -> str:
    """The text after the image, with `{caption}` still in it."""
    return USER_PROMPTS[recipe.language] if recipe.user_prompt is None else recipe.user_prompt


def answer_schema(recipe: Recipe, family: Family) -> dict[str, Any]:
    """JSON schema of an answer. Every string and array is bounded: an unbounded one lets a model run to max_tokens."""
    coordinate = {"type": "number" if family.space == "unit" else "integer"}
    item = {
        "type": "object",
        "properties": {
            family.box_key: {"type": "array", "items": coordinate, "minItems": 4, "maxItems": 4},
            family.name_key: {"type": "string", "maxLength": 120},
        },
        "required": [family.box_key, family.name_key],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string", "maxLength": 2000},
            "objects": {"type": "array", "items": item, "maxItems": recipe.max_objects},
        },
        "required": ["rationale", "objects"],
        "additionalProperties": False,
    }


class RequestTemplate:
    """A chat completion as JSON, made once, into which each row's image and caption are put.

    The image part carries no `uuid`: vLLM would serve the pixels it first saw under it.
    """

    def __init__(self, recipe: Recipe, family: Family, model: str, attempt: int = 1) -> None:
        """The request of the `attempt`th try (from 1) of a row."""
        image, caption = secrets.token_hex(16), secrets.token_hex(16)
        # str.replace, not str.format: captions and prompts are full of braces.
        text = user_prompt(recipe).replace("{caption}", caption)
        body: dict[str, Any] = {
            "model": model,
            "messages": [
                {"role": "system", "content": system_prompt(recipe, family)},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": image}},
                        {"type": "text", "text": text},
                    ],
                },
            ],
            "temperature": recipe.temperature_of(attempt),
            "top_p": recipe.top_p,
            "max_tokens": recipe.max_tokens,
        }
        if recipe.structured_output:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "annotation", "schema": answer_schema(recipe, family), "strict": True},
            }
        if recipe.repetition_detection:
            body["repetition_detection"] = REPETITION_DETECTION
        self._before_image, after_image = orjson.dumps(body).split(image.encode())
        self._around_captions = after_image.split(caption.encode())

    def body(self, caption: str, image: PreparedImage) -> bytes:
        """The JSON body of a row's request."""
        written = orjson.dumps(caption)[1:-1]
        return b"".join((self._before_image, image.url(), written.join(self._around_captions)))
