"""What decides an answer: prompt, schema, sampling and image budget; its fingerprint; the request it makes."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import orjson
import yaml
from pydantic import BaseModel, Field, field_validator, model_validator

from flows.errors import UsageError
from flows.images import ImageBudget, PreparedImage

PIXELS_PER_VISUAL_TOKEN = 28 * 28  # Qwen2.5-VL: patches of 14 pixels, merged 2 × 2

SYSTEM_PROMPTS = {
    "en": (
        "You annotate images for training a text-to-image layout model. Look at the image, then answer with one JSON "
        "object and nothing else:\n"
        '{"rationale": "…", "objects": [{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]}\n'
        "First the rationale: two to four sentences on where things are, how large they are and how they stand to one "
        "another (left of, above, in front of, inside). Then the objects: every distinct thing that the caption names "
        "or that matters for the layout, each once, with a short label and its box in absolute pixel coordinates of "
        "the image, top left corner first. Write in English."
    ),
    "zh": (
        "你为训练文生图布局模型的数据标注图片。请观察图片,只输出一个 JSON 对象,不要输出其他内容:\n"
        '{"rationale": "…", "objects": [{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]}\n'
        "先写 rationale:用两到四句话说明画面中各物体的位置、大小以及相互关系(左右、上下、前后、内外)。"
        "再写 objects:列出描述中提到的或对布局重要的每一个物体,各列一次,给出简短的名称 label,"
        "以及它在图片中的绝对像素坐标框 bbox_2d(先左上角,后右下角)。请用中文书写。"
    ),
}
USER_PROMPTS = {"en": "Caption: {caption}", "zh": "图片描述:{caption}"}


class Recipe(BaseModel):
    """Everything that decides an answer, and nothing else."""

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
    max_objects: int = Field(default=50, ge=1, title="Max objects", description="Most objects an answer may list.")
    min_visual_tokens: int = Field(
        default=128,
        ge=4,
        title="Min visual tokens",
        description="Smaller images are enlarged to this budget (28 × 28 pixels a token).",
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

    @property
    def image_budget(self) -> ImageBudget:
        """The image budget in pixels, as smart_resize wants it."""
        return ImageBudget(
            min_pixels=self.min_visual_tokens * PIXELS_PER_VISUAL_TOKEN,
            max_pixels=self.max_visual_tokens * PIXELS_PER_VISUAL_TOKEN,
            jpeg_quality=self.jpeg_quality,
        )


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The recipe fields in a YAML file. Raises UsageError where it is no mapping of known fields."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    known = ", ".join(Recipe.model_fields)
    if not isinstance(fields, dict):
        raise UsageError(f"recipe {str(path)!r} must be a mapping of fields: {known}")
    if unknown := [str(name) for name in fields if name not in Recipe.model_fields]:
        raise UsageError(f"recipe {str(path)!r} has unknown fields {', '.join(unknown)}; known are {known}")
    return fields


def recipe_settings(recipe: Recipe, model: str) -> dict[str, Any]:
    """The recipe and the model as plain data: what the fingerprint covers and `recipe.json` shows."""
    return {"model": model} | {name: getattr(recipe, name) for name in sorted(Recipe.model_fields)}


def fingerprint(recipe: Recipe, model: str) -> str:
    """12 hexadecimal digits that change whenever an answer could: settings, built-in prompts and schema alike."""
    decides = recipe_settings(recipe, model) | {
        "system_prompt": system_prompt(recipe),
        "user_prompt": user_prompt(recipe),
        "schema": answer_schema(recipe),
    }
    canonical = json.dumps(decides, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def system_prompt(recipe: Recipe) -> str:
    """The instructions: the same for every image, so vLLM's prefix cache serves them."""
    return SYSTEM_PROMPTS[recipe.language] if recipe.system_prompt is None else recipe.system_prompt


def user_prompt(recipe: Recipe) -> str:
    """The text after the image, with `{caption}` still in it."""
    return USER_PROMPTS[recipe.language] if recipe.user_prompt is None else recipe.user_prompt


def answer_schema(recipe: Recipe) -> dict[str, Any]:
    """JSON schema of an answer. Every string and array is bounded: an unbounded one lets a model run to max_tokens."""
    label = {"type": "string", "maxLength": 120}
    box = {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}
    objects = {"type": "object", "properties": {"bbox_2d": box, "label": label}, "required": ["bbox_2d", "label"]}
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string", "maxLength": 2000},
            "objects": {
                "type": "array",
                "items": objects | {"additionalProperties": False},
                "maxItems": recipe.max_objects,
            },
        },
        "required": ["rationale", "objects"],
        "additionalProperties": False,
    }


def request_body(recipe: Recipe, model: str, caption: str, image: PreparedImage) -> bytes:
    """The JSON body of one chat completion. The image part carries no `uuid`: vLLM would serve stale pixels by it."""
    data_uri = "data:image/jpeg;base64," + base64.b64encode(image.jpeg).decode("ascii")
    # str.replace, not str.format: captions and prompts are full of braces.
    text = user_prompt(recipe).replace("{caption}", caption)
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": system_prompt(recipe)},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": data_uri}},
                    {"type": "text", "text": text},
                ],
            },
        ],
        "temperature": recipe.temperature,
        "top_p": recipe.top_p,
        "max_tokens": recipe.max_tokens,
    }
    if recipe.structured_output:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "annotation", "schema": answer_schema(recipe), "strict": True},
        }
    return orjson.dumps(body)
