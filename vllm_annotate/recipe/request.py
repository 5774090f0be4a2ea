"""The request body of a chat completion."""

import secrets
from typing import Any

import orjson

from vllm_annotate.recipe.families import Family
from vllm_annotate.recipe.prompts import answer_schema, system_prompt, user_prompt
from vllm_annotate.recipe.settings import REPETITION_DETECTION, Recipe


class RequestTemplate:
    """The JSON of a chat completion, built once; each row's image and caption are inserted.

    The image part has no `uuid`: vLLM would reuse the first pixels that it saw under it.
    """

    def __init__(self, recipe: Recipe, family: Family, model: str, attempt: int = 1) -> None:
        """Builds the request of a row's `attempt`, the first being 1."""
        image, caption = secrets.token_hex(16), secrets.token_hex(16)
        # Not str.format: prompts contain braces.
        text = user_prompt(recipe).replace("{caption}", caption)
        system = system_prompt(recipe, family)
        body: dict[str, Any] = {
            "model": model,
            "messages": [
                *([{"role": "system", "content": system}] if system else []),  # some chat templates have no such role
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
        if recipe.seed is not None:
            body["seed"] = recipe.seed
        if recipe.structured_output:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "annotation", "schema": answer_schema(recipe, family), "strict": True},
            }
        if recipe.repetition_detection:
            body["repetition_detection"] = REPETITION_DETECTION
        self._before_image, after_image = orjson.dumps(body).split(image.encode())
        self._around_captions = after_image.split(caption.encode())

    def body(self, caption: str, image_url: bytes) -> bytes:
        """Returns the JSON body of a row's request."""
        written = orjson.dumps(caption)[1:-1]
        return b"".join((self._before_image, image_url, written.join(self._around_captions)))
