"""Measures time and peak memory of plan, resume and merge: `python -m benchmarks.scale [MILLIONS …]`.

Each step runs in a separate process, whose peak resident set is measured. Plan and resume: nine tenths of the rows are
in the output. Merge: every row of the plan has an answer in the parts. Index, new row: all rows are in the output but
one, planned without and with the index that the first makes. Ten million rows take 12 GB of disk.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vllm_annotate.inputs.plan import make_plan, open_plan
from vllm_annotate.inputs.plan_file import Plan
from vllm_annotate.inputs.source import Source
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.parts import answers_path
from vllm_annotate.storage.workspace import Workspace

CHUNK = 500
ANSWER = (
    '"vlm_output": "{\\"rationale\\": \\"The red circle is left of the blue square.\\", \\"objects\\": '
    '[{\\"bbox_2d\\": [1, 2, 3, 4], \\"label\\": \\"red circle\\"}]}", "annotations": {"rationale": '
    '"The red circle is left of the blue square.", "objects": [{"name": "red circle", "bbox": [1, 2, 3, 4]}]}, '
    '"objects": [{"name": "red circle", "bbox": [1, 2, 3, 4]}], "width": 640, "height": 480}\n'
)


def rows(count: int) -> Iterator[str]:
    """Yields input rows, each without its closing brace."""
    for number in range(count):
        yield f'{{"image_path": "d{number % 1000:04d}/{number:09d}.jpg", "caption": "一张图片,红色的圆形 {number}"'


def write_lines(path: Path, lines: Iterator[str]) -> None:
    """Writes a file, a few thousand lines at a time."""
    with path.open("w") as file:
        while batch := list(islice(lines, 10_000)):
            file.write("".join(batch))


def answer_all(workspace: Workspace, plan: Plan, count: int) -> None:
    """Writes the parts of every chunk."""
    lines = (row + ", " + ANSWER for row in rows(count))
    for chunk in plan.chunks:
        write_lines(answers_path(workspace, chunk), islice(lines, chunk.length))


def measured(folder: Path, step: str) -> tuple[float, float]:
    """Seconds and GiB of a step, run in a separate process."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "benchmarks.scale", str(folder), step], os.environ)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"{step} failed")
    seconds, gibibytes = map(float, (folder / "measured").read_text().split())
    return seconds, gibibytes


def step(folder: Path, name: str) -> None:
    """Runs one step in this process."""
    source, workspace = Source(folder / "input.jsonl"), Workspace.at(folder / "labeled.jsonl")
    plan = open_plan(workspace) if name == "merge" else None
    begun = time.monotonic()
    if name in ("plan", "index", "new row"):
        make_plan(source, workspace, CHUNK)
    elif name == "resume":
        open_plan(workspace)
    elif plan is not None:
        Merge(workspace, plan).finish()
    seconds = time.monotonic() - begun
    (folder / "measured").write_text(f"{seconds} {peak_gibibytes()}")


def peak_gibibytes() -> float:
    """Peak resident set of this process. getrusage would include the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024 / 1024


def main(*millions: float) -> None:
    """Prints a line per number of rows."""
    for count in (int(1_000_000 * each) for each in millions):
        with tempfile.TemporaryDirectory(dir=".", prefix="scale-") as name:
            folder = Path(name).resolve()
            workspace = Workspace.at(folder / "labeled.jsonl")
            workspace.parts.mkdir(parents=True)
            write_lines(folder / "input.jsonl", (row + "}\n" for row in rows(count)))
            answered = (row + ", " + ANSWER for number, row in enumerate(rows(count)) if number % 10)
            write_lines(workspace.output, answered)
            measurements = [measured(folder, "plan"), measured(folder, "resume")]
            workspace.output.unlink()
            answer_all(workspace, make_plan(Source(folder / "input.jsonl"), workspace, CHUNK), count)
            measurements.append(measured(folder, "merge"))
            with (folder / "input.jsonl").open("a") as file:
                file.write('{"image_path": "new.jpg", "caption": ""}\n')
            measurements += [measured(folder, "index"), measured(folder, "new row")]
        steps = zip(("plan", "resume", "merge", "index", "new row"), measurements, strict=True)
        words = (f"{name} {seconds:.1f} s, {peak:.2f} GiB" for name, (seconds, peak) in steps)
        print(f"{count:,} rows: {'; '.join(words)}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3 and Path(sys.argv[1]).is_dir():
        step(Path(sys.argv[1]), sys.argv[2])
    else:
        main(*map(float, sys.argv[1:] or ["1", "3", "10"]))
