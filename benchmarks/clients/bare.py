"""The lower limit: only aiohttp and orjson, one worker per slot.

`python -m benchmarks.clients.bare INPUT IMAGES OUTPUT URL IN_FLIGHT`.
"""

import asyncio
import base64
import mimetypes
import sys
from pathlib import Path

import aiohttp
import orjson

from vllm_annotate.recipe.families import resolve_family
from vllm_annotate.recipe.prompts import answer_schema, system_prompt, user_prompt
from vllm_annotate.recipe.settings import Recipe


async def main(source: str, images: str, output: str, url: str, in_flight: str) -> None:
    """Annotates every row."""
    connector = aiohttp.TCPConnector(limit=int(in_flight))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        async with session.get(f"{url}/v1/models") as response:
            model = orjson.loads(await response.read())["data"][0]["id"]
        recipe, family = Recipe(), resolve_family("auto", model)
        system, user, schema = system_prompt(recipe, family), user_prompt(recipe), answer_schema(recipe, family)
        with Path(source).open("rb") as lines, Path(output).open("wb") as file:  # noqa: ASYNC230

            async def work() -> None:
                for line in lines:
                    row = orjson.loads(line)
                    media_type, _ = mimetypes.guess_type(row["image_path"])
                    image = base64.b64encode(Path(images, row["image_path"]).read_bytes()).decode()
                    body = {
                        "model": model,
                        "messages": [
                            {"role": "system", "content": system},
                            {
                                "role": "user",
                                "content": [
                                    {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{image}"}},
                                    {"type": "text", "text": user.replace("{caption}", row["caption"])},
                                ],
                            },
                        ],
                        "temperature": 0, "top_p": 1, "max_tokens": 1536,
                        "response_format": {
                            "type": "json_schema",
                            "json_schema": {"name": "annotation", "schema": schema, "strict": True},
                        },
                    }  # fmt: skip
                    headers = {"Content-Type": "application/json"}
                    async with session.post(
                        f"{url}/v1/chat/completions", data=orjson.dumps(body), headers=headers
                    ) as answer:
                        text = orjson.loads(await answer.read())["choices"][0]["message"]["content"]
                    file.write(orjson.dumps({**row, "vlm_output": text, "annotations": orjson.loads(text)}) + b"\n")

            await asyncio.gather(*(work() for _ in range(int(in_flight))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
