"""The fingerprint of a recipe: identifies what wrote an output."""

import hashlib
import json
from typing import Any

from vllm_annotate.recipe.families import resolve_family
from vllm_annotate.recipe.prompts import answer_schema, system_prompt, user_prompt
from vllm_annotate.recipe.settings import REASK_TEMPERATURES, REPETITION_DETECTION, Recipe

# Always part of the fingerprint, as in the first version. Fields added later are part of it unless they have their
# default: unfinished outputs of earlier versions can be resumed.
FIRST_FIELDS = frozenset((
    "family", "language", "system_prompt", "user_prompt", "structured_output", "temperature", "top_p", "max_tokens",
    "repetition_detection", "reasks", "max_objects", "min_visual_tokens", "max_visual_tokens", "jpeg_quality",
))  # fmt: skip


def recipe_settings(recipe: Recipe, model: str) -> dict[str, Any]:
    """Returns the model and the recipe as plain data, for the fingerprint and `recipe.json`."""
    settings = {
        name: value
        for name, field in sorted(type(recipe).model_fields.items())
        if (value := getattr(recipe, name)) != field.get_default(call_default_factory=True) or name in FIRST_FIELDS
    }
    return {"model": model} | settings | {"family": resolve_family(recipe.family, model).name}


def fingerprint(recipe: Recipe, model: str) -> str:
    """Returns 12 hexadecimal digits that change with everything that decides an answer.

    Covers settings, built-in prompts and schema. How an image is sent (bytes, name, connection) does not count.
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
