"""Compares the flow with `vllm bench serve` and bare aiohttp, on a real vLLM on CPU.

`python -m benchmarks.against_vllm [images] [rounds]`. First over a mix of images as the web has them, then over its
part that needs no resizing. All send the same prompts with IN_FLIGHT requests in flight; the other two send each file
as it is, and leave decoding and resizing to vLLM. Each answer is cut off at TOKENS tokens, so for the flow every image
fails, after one request. They run in turn, without caches, which would favour the later ones; the prompt tokens show
that the model saw the same sizes. Prints requests per second, as each program reports them. The model is tiny, and
shares the processor with the client: on GPUs the client has its cores to itself.
"""

import asyncio
import base64
import json
import mimetypes
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import orjson

from benchmarks.images import described, draw
from benchmarks.programs import reporting_to_prefect, spread
from benchmarks.tiny_grounder import Running, limits, tiny_grounder
from demo.processes import TINY_GROUNDER
from vllm_annotate.inference.metrics import read_metrics
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe

IN_FLIGHT, TOKENS = 32, 24  # a full answer has about a hundred
PROMPT = "Locate every shape and answer in JSON. Caption: "
RECIPE = {
    "family": "qwen2.5-vl",
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


def requests(source: Path, model: str) -> list[bytes]:
    """Writes an input's requests for vLLM's benchmark beside it; returns those for aiohttp. Files are as they are."""
    template = RequestTemplate(Recipe.model_validate(RECIPE), FAMILIES["qwen2.5-vl"], model)
    bodies = []
    with source.with_name("bench.jsonl").open("wb") as bench:
        for line in source.read_bytes().splitlines():
            row = orjson.loads(line)
            media_type, _ = mimetypes.guess_type(row["image_path"])
            content = base64.b64encode((source.with_name("images") / row["image_path"]).read_bytes())
            url = b"data:%s;base64,%s" % (str(media_type).encode(), content)
            picture = {"type": "image_url", "image_url": {"url": url.decode()}}
            bench.write(orjson.dumps({"content": [picture, {"type": "text", "text": PROMPT + row["caption"]}]}) + b"\n")
            bodies.append(template.body(row["caption"], url))
    source.with_name("recipe.yaml").write_text(json.dumps(RECIPE))  # which is YAML too
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


def prompt_tokens(folder: Path) -> float:
    """Prompt tokens of the images that the flow has sent, by its report."""
    return float(json.loads((folder / "labeled.report.json").read_text())["tokens"]["prompt"])


async def tokens_asked(url: str) -> float:
    """Prompt tokens that the server has received since its start."""
    async with aiohttp.ClientSession() as session, session.get(f"{url.removesuffix('/v1')}/metrics") as response:
        metrics = read_metrics(await response.read())
    assert metrics is not None  # noqa: S101 - for the type checker
    return metrics.prompt_tokens


async def compare(source: Path, server: Running, images: int, rounds: int) -> dict[str, list[float]]:
    """Prints the rates of each round; returns the flow's ratio to the others."""
    folder, url, bodies = source.parent, server.url, requests(source, server.model)
    programs: dict[str, Callable[[], Awaitable[float]]] = {
        "vllm bench serve": lambda: by_vllm(folder, url, server.model, server.executable, images),
        "bare aiohttp": lambda: by_aiohttp(bodies, url),
        "flow": lambda: by_the_flow(folder, url),
    }
    ratios: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        speeds, asked = {}, {}
        for name, program in programs.items():
            before = await tokens_asked(url)
            speeds[name] = await program()
            asked[name] = await tokens_asked(url) - before
        asked["flow"] = prompt_tokens(folder)  # without the proof
        if len(set(asked.values())) != 1:
            raise SystemExit(f"not the same prompts, in tokens: {asked}")
        rates = ", ".join(f"{name} {speed:.2f}/s" for name, speed in speeds.items())
        print(f"round {number}: {rates}" if number else f"warmup: {rates}", flush=True)
        if number:
            for other in ("vllm bench serve", "bare aiohttp"):
                ratios.setdefault(f"flow ÷ {other}", []).append(speeds["flow"] / speeds[other])
    return ratios


async def main(images: int = 300, rounds: int = 4) -> None:
    """Prints the ratios for each input."""
    recipe = Recipe()
    with reporting_to_prefect("against-vllm-") as folder:
        inputs = draw(folder, images)
        async with tiny_grounder(folder, limits(recipe.min_visual_tokens, recipe.max_visual_tokens)) as server:
            for what, source in inputs.items():
                print(f"input: {what}: {described(what)}", flush=True)
                for which, each in (await compare(source, server, images, rounds)).items():
                    print(f"{what}: {which}: {spread(each)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
