"""The identity of a recipe: what an output was made with."""

import hashlib
import json
from typing import Any

from vllm_annotate.recipe.families import resolve_family
from vllm_annotate.recipe.prompts import answer_schema, system_prompt, user_prompt
from vllm_annotate.recipe.settings import REASK_TEMPERATURES, REPETITION_DETECTION, Recipe

# Always part of the fingerprint, as in the first outputs. A field that is added later is part of it where it is not at
# its default: half-finished outputs of earlier versions go on.
FIRST_FIELDS = frozenset((
    "family", "language", "system_prompt", "user_prompt", "structured_output", "temperature", "top_p", "max_tokens",
    "repetition_detection", "reasks", "max_objects", "min_visual_tokens", "max_visual_tokens", "jpeg_quality",
))  # fmt: skip


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
