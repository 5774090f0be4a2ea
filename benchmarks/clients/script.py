"""A typical script: AsyncOpenAI, a semaphore, one task per row; no checks, no resume.

`python -m benchmarks.clients.script INPUT IMAGES OUTPUT URL IN_FLIGHT`.
"""

import asyncio
import base64
import json
import mimetypes
import sys
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from vllm_annotate.recipe.families import resolve_family
from vllm_annotate.recipe.prompts import answer_schema, system_prompt, user_prompt
from vllm_annotate.recipe.settings import Recipe


async def main(source: str, images: str, output: str, url: str, in_flight: str) -> None:
    """Annotates every row."""
    client, slots = AsyncOpenAI(base_url=f"{url}/v1", api_key="none"), asyncio.Semaphore(int(in_flight))
    model = (await client.models.list()).data[0].id
    recipe, family = Recipe(), resolve_family("auto", model)
    schema = {"name": "annotation", "schema": answer_schema(recipe, family), "strict": True}

    async def annotate(row: dict[str, str]) -> str:
        async with slots:
            media_type, _ = mimetypes.guess_type(row["image_path"])
            image = base64.b64encode(Path(images, row["image_path"]).read_bytes()).decode()
            content = [
                {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{image}"}},
                {"type": "text", "text": user_prompt(recipe).replace("{caption}", row["caption"])},
            ]
            request: dict[str, Any] = {
                "model": model, "temperature": 0, "top_p": 1, "max_tokens": 1536,
                "messages": [
                    {"role": "system", "content": system_prompt(recipe, family)},
                    {"role": "user", "content": content},
                ],
                "response_format": {"type": "json_schema", "json_schema": schema},
            }  # fmt: skip
            answer = await client.chat.completions.create(**request)
        text = answer.choices[0].message.content or ""
        annotations = json.loads(text)
        return json.dumps({**row, "vlm_output": text, "annotations": annotations}, ensure_ascii=False)

    lines = Path(source).read_text().splitlines()
    with Path(output).open("w") as file:  # noqa: ASYNC230
        for line in asyncio.as_completed([asyncio.create_task(annotate(json.loads(line))) for line in lines]):
            file.write(await line + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
