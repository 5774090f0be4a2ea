"""Seconds and peak memory of planning a large input, most of it done: `python -m benchmarks.plan_rows [MILLIONS]`.

Peak memory is the resident set of the whole process. Four fifths of the rows are in the output.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

from flows.plan import Source, make_plan, open_plan
from flows.workspace import Workspace

ANSWER = (
    '"vlm_output": "{\\"rationale\\": \\"The red circle is left of the blue square.\\", \\"objects\\": '
    '[{\\"bbox_2d\\": [1, 2, 3, 4], \\"label\\": \\"red circle\\"}]}", "annotations": {"rationale": '
    '"The red circle is left of the blue square.", "objects": [{"name": "red circle", "bbox": [1, 2, 3, 4]}]}, '
    '"objects": [{"name": "red circle", "bbox": [1, 2, 3, 4]}], "width": 640, "height": 480}\n'
)


def main() -> None:
    """Writes input and output, plans, and plans on."""
    rows = int(float(sys.argv[1] if len(sys.argv) > 1 else 5) * 1_000_000)
    with tempfile.TemporaryDirectory(dir=".") as name:
        source, workspace = Source(Path(name, "input.jsonl")), Workspace.at(Path(name, "labeled.jsonl"))
        workspace.parts.mkdir(parents=True)
        with source.path.open("w") as input_file, workspace.output.open("w") as output_file:
            for number in range(rows):
                image_path = f"d{number % 1000:04d}/{number:09d}.jpg"
                row = f'{{"image_path": "{image_path}", "caption": "一张图片,红色的圆形 {number}"'
                input_file.write(row + "}\n")
                if number % 5:
                    output_file.write(row + ", " + ANSWER)
        started = time.monotonic()
        plan = make_plan(source, workspace, chunk_size=500)
        planned = time.monotonic()
        open_plan(workspace)
        opened = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024
    print(f"{rows:,} rows, {plan.counts.already_done:,} done, {len(plan.chunks):,} chunks: ", end="")
    print(f"plan {planned - started:.1f} s, open it again {opened - planned:.1f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
