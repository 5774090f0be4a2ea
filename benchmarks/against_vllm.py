"""The flow beside `vllm bench serve`, on a real vLLM on CPU: `python -m benchmarks.against_vllm [images] [rounds]`.

The same images and prompts, IN_FLIGHT requests at once, and TOKENS tokens an answer, at which each is cut off: for the
flow every image therefore fails, after one request. In turn; requests a second, as each program reports them.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from blocks import VLLMServer
from demo.processes import TINY_GROUNDER, TINY_GROUNDER_SERVER
from demo.scenes import write_small_folder
from flows.prefect_server import TemporaryPrefectServer
from flows.serving.keeper import kept_servers
from flows.serving.preflight import preflight
from flows.yaml_fields import read_fields

IN_FLIGHT, TOKENS = 32, 24  # an answer of the model has about a hundred
PROMPT = "Locate every shape and answer in JSON. Caption: "
RECIPE = f"""
family: qwen2.5-vl
min_visual_tokens: 49
max_visual_tokens: 81
system_prompt: ""
user_prompt: "{PROMPT}{{caption}}"
structured_output: false
repetition_detection: false
max_tokens: {TOKENS}
reasks: 0
"""


async def output_of(*command: str) -> str:
    """What a command says. Raises where it fails in earnest: exit code 1 is of images without an answer."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    said = (await process.communicate())[0].decode(errors="replace")
    if process.returncode not in (0, 1):
        raise SystemExit(said[-3000:])
    return said


async def by_the_flow(folder: Path, url: str) -> float:
    """Requests a second of a run."""
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


async def by_vllm(folder: Path, url: str, model: str, vllm: str, images: int) -> float:
    """Requests a second of vLLM's benchmark."""
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


async def main(images: int = 400, rounds: int = 5) -> None:
    """Prints the ratios."""
    server = VLLMServer(**read_fields(TINY_GROUNDER_SERVER, "server", VLLMServer))
    assert server.start is not None  # noqa: S101 - for the type checker
    found = preflight(server.start, server.model, "")
    found.check()
    with tempfile.TemporaryDirectory(prefix="against-vllm-") as name:
        folder = Path(name)
        source, _ = write_small_folder(folder, images, shapes=2)
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        (folder / "recipe.yaml").write_text(RECIPE)
        files = [str(folder / "images" / row["image_path"]) for row in rows]
        requests = (
            {"prompt": PROMPT + row["caption"], "image_files": [file]} for row, file in zip(rows, files, strict=True)
        )
        (folder / "bench.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
        prefect = TemporaryPrefectServer({"PREFECT_HOME": str(folder / "prefect")})
        prefect.wait_until_ready()
        os.environ |= {"PREFECT_API_URL": prefect.api_url, "PREFECT_HOME": str(folder / "prefect")}
        os.environ |= server.start.environment
        ratios = []
        async with kept_servers(found.replicas, folder, print):
            url = server.urls()[0]
            for number in range(rounds + 1):
                theirs = await by_vllm(folder, url, found.model_name, server.start.executable, images)
                ours = await by_the_flow(folder, url)
                print(
                    f"flow {ours:.2f}/s, vllm bench serve {theirs:.2f}/s" + ("" if number else " (warming up)"),
                    flush=True,
                )
                ratios += [ours / theirs] if number else []
        prefect.stop()
    print(f"flow ÷ vllm bench serve: {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
