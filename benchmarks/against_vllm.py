"""Compares the flow with `vllm bench serve` and bare aiohttp, on a real vLLM on CPU.

`python -m benchmarks.against_vllm [images] [rounds]`. All send the same prompts and JPEGs, which need no change, with
IN_FLIGHT requests in flight. Each answer is cut off at TOKENS tokens, so for the flow every image fails, after one
request. They run in turn, without a prefix cache, which would favour the later ones; the server's token count shows
that all sent the same. Prints requests per second, as each program reports them.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from benchmarks.programs import reporting_to_prefect, spread
from blocks import VLLMServer
from demo.processes import TINY_GROUNDER, TINY_GROUNDER_SERVER
from demo.scenes import write_small_folder
from vllm_annotate.images.prepare import prepare
from vllm_annotate.inference.metrics import read_metrics
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.serving.keeper import kept_servers
from vllm_annotate.serving.preflight import preflight
from vllm_annotate.storage.yaml_fields import read_fields

IN_FLIGHT, TOKENS = 32, 24  # a full answer has about a hundred
PROMPT = "Locate every shape and answer in JSON. Caption: "
RECIPE = {
    "family": "qwen2.5-vl", "min_visual_tokens": 49, "max_visual_tokens": 81,
    # The default of the model's template: vLLM's benchmark sends no system message.
    "system_prompt": "You are a helpful assistant.", "user_prompt": PROMPT + "{caption}",
    "structured_output": False, "repetition_detection": False, "max_tokens": TOKENS, "reasks": 0,
}  # fmt: skip


async def output_of(*command: str) -> str:
    """Returns the output of a command. Raises if it fails, other than with 1: images without an answer."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    said = (await process.communicate())[0].decode(errors="replace")
    if process.returncode not in (0, 1):
        raise SystemExit(said[-3000:])
    return said


async def by_the_flow(folder: Path, url: str) -> float:
    """Requests per second of the flow."""
    output = folder / "labeled.jsonl"
    await output_of(
        sys.executable, "-m", "flows.annotate", "--input", str(folder / "input.jsonl"), "--image-root",
        str(folder / "images"), "--output", str(output), "--api-base", url, "--recipe", str(folder / "recipe.yaml"),
        "--max-concurrency", str(IN_FLIGHT), "--error-budget", "1",
    )  # fmt: skip
    report = json.loads(output.with_suffix(".report.json").read_text())
    output.with_suffix(".failures.jsonl").unlink()
    if set(report["failures"]) != {"truncated"}:
        raise SystemExit(f"not every answer was cut off at {TOKENS} tokens: {report['images']}, {report['failures']}")
    return float(report["images"]["failed"] / report["annotating_seconds"])


def draw(folder: Path, count: int, model: str) -> list[bytes]:
    """Writes images, the flow's input, and the same requests for vLLM's benchmark; returns the flow's requests."""
    source, _ = write_small_folder(folder, count, shapes=2)
    recipe, family = Recipe.model_validate(RECIPE), FAMILIES["qwen2.5-vl"]
    template, budget = RequestTemplate(recipe, family, model), recipe.image_budget(family)
    rows, requests, bodies = [], [], []
    for line in source.read_text().splitlines():
        row = json.loads(line)
        image = prepare(folder / "images", row["image_path"], budget)
        row["image_path"] = f"{row['image_path']}.jpg"
        (folder / "images" / row["image_path"]).write_bytes(image.content)
        rows.append(row)
        picture = {"type": "image_url", "image_url": {"url": image.url().decode()}}
        requests.append({"content": [picture, {"type": "text", "text": PROMPT + row["caption"]}]})
        bodies.append(template.body(row["caption"], image.url()))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bench.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))  # which is YAML too
    return bodies


async def by_aiohttp(bodies: list[bytes], url: str) -> float:
    """Requests per second of the flow's requests, sent with bare aiohttp."""
    waiting = iter(bodies)
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:

        async def work() -> None:
            for body in waiting:
                async with session.post(f"{url}/chat/completions", data=body) as response:
                    response.raise_for_status()
                    await response.read()

        begun = time.monotonic()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return len(bodies) / (time.monotonic() - begun)


async def by_vllm(folder: Path, url: str, model: str, vllm: str, images: int) -> float:
    """Requests per second of vLLM's benchmark."""
    await output_of(
        vllm, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url",
        url.removesuffix("/v1"), "--model", model, "--tokenizer", str(TINY_GROUNDER), "--dataset-name", "custom_image",
        "--dataset-path", str(folder / "bench.jsonl"), "--num-prompts", str(images), "--custom-output-len", str(TOKENS),
        "--max-concurrency", str(IN_FLIGHT), "--temperature", "0", "--ignore-eos", "--disable-tqdm",
        "--save-result", "--result-dir", str(folder), "--result-filename", "bench.json",
    )  # fmt: skip
    result = json.loads((folder / "bench.json").read_text())
    if result["completed"] != images or result["total_output_tokens"] != images * TOKENS:
        raise SystemExit(f"{result['completed']} of {images} requests, {result['total_output_tokens']} tokens")
    return float(result["request_throughput"])


async def tokens_asked(url: str) -> float:
    """Prompt tokens that the server has received since its start."""
    async with aiohttp.ClientSession() as session, session.get(f"{url.removesuffix('/v1')}/metrics") as response:
        metrics = read_metrics(await response.read())
    assert metrics is not None  # noqa: S101 - for the type checker
    return metrics.prompt_tokens


async def main(images: int = 600, rounds: int = 6) -> None:
    """Prints the ratios."""
    server = VLLMServer(**read_fields(TINY_GROUNDER_SERVER, "server", VLLMServer))
    assert server.start is not None  # noqa: S101 - for the type checker
    arguments = [*server.start.extra_arguments, "--no-enable-prefix-caching"]
    start = server.start.model_copy(update={"extra_arguments": arguments})
    found = preflight(start, server.model, "")
    found.check()
    with reporting_to_prefect("against-vllm-") as folder:
        bodies = draw(folder, images, found.model_name)
        os.environ |= start.variables
        ratios: dict[str, list[float]] = {}
        async with kept_servers(found.replicas, folder, print):
            url = server.urls()[0]
            programs: dict[str, Callable[[], Awaitable[float]]] = {
                "vllm bench serve": lambda: by_vllm(folder, url, found.model_name, start.executable, images),
                "bare aiohttp": lambda: by_aiohttp(bodies, url),
                "flow": lambda: by_the_flow(folder, url),
            }
            for number in range(rounds + 1):
                speeds, asked = {}, {}
                for name, program in programs.items():
                    before = await tokens_asked(url)
                    speeds[name] = await program()
                    asked[name] = await tokens_asked(url) - before
                if len(set(asked.values())) != 1:
                    raise SystemExit(f"not the same prompts, in tokens: {asked}")
                rates = ", ".join(f"{name} {speed:.2f}/s" for name, speed in speeds.items())
                print(f"round {number}: {rates}" if number else f"warmup: {rates}", flush=True)
                if number:
                    for other in ("vllm bench serve", "bare aiohttp"):
                        ratios.setdefault(f"flow ÷ {other}", []).append(speeds["flow"] / speeds[other])
    for what, each in ratios.items():
        print(f"{what}: {spread(each)}")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
