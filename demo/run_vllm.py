"""`make demo-vllm`: the same job against a real vLLM on CPU, with a real model of 3.2 M parameters."""

import sys
from pathlib import Path

from rich.console import Console

from demo.processes import TINY_GROUNDER_RECIPE, vllm_on_cpu
from demo.run import show
from demo.scenes import write_small_folder
from flows.command_line import main as annotate

IMAGES = 60


def main() -> int:
    """Runs the demo; 0 when every image was answered."""
    folder = Path("demo-output/vllm")
    input_path, truth_path = write_small_folder(folder, IMAGES, shapes=2)
    output = folder / "labeled.jsonl"
    print("starting vllm serve on CPU, half a minute …", flush=True)
    with vllm_on_cpu(Path(".venv-vllm"), folder / "vllm.log") as base_url:
        code = annotate(
            ["--input", str(input_path), "--image-root", str(folder / "images"), "--output", str(output),
             "--api-base", f"{base_url}/v1", "--recipe", str(TINY_GROUNDER_RECIPE), "--max-concurrency", "8"]
        )  # fmt: skip
    show(Console(), output, truth_path, "by tiny-grounder, 3.2 M parameters, through vLLM on CPU")
    return code


if __name__ == "__main__":
    sys.exit(main())
