"""`make demo-vllm`: the demo with a real vLLM on CPU, which the flow starts, and a model of 3.2 M parameters."""

import sys
from pathlib import Path

from rich.console import Console

from demo.processes import TINY_GROUNDER_RECIPE, TINY_GROUNDER_SERVER
from demo.run import show
from demo.scenes import write_small_folder
from vllm_annotate.cli.main import main as vllm_annotate

IMAGES = 60


def main() -> int:
    """Runs the demo; returns 0 if every image was answered."""
    folder = Path("demo-output/vllm")
    input_path, truth_path = write_small_folder(folder, IMAGES, shapes=2)
    output = folder / "labeled.jsonl"
    code = vllm_annotate(
        ["annotate", "--input", str(input_path), "--image-root", str(folder / "images"), "--output", str(output),
         "--server", str(TINY_GROUNDER_SERVER), "--recipe", str(TINY_GROUNDER_RECIPE)]
    )  # fmt: skip
    show(Console(), output, truth_path, "by tiny-grounder, 3.2 M parameters, through vLLM on CPU")
    return code


if __name__ == "__main__":
    sys.exit(main())
