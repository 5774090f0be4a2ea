"""What many input files cost: planning, memory, a run without news, and one new file beside all that are done.

`python -m benchmarks.folders [FILES ROWS ANSWERS]`, by default 100 files of 50,000 rows. In the first run each file has
all its rows answered but ten, which a stand-in answers. Rows have 90 bytes; answers are only their image paths, or if
ANSWERS is `whole` of 0.5 KB. Whole processes, without Prefect but for the last.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.programs import peak_mebibytes, reporting_to_prefect, spread
from benchmarks.scale import ANSWER, rows, write_lines
from demo.processes import stand_in
from demo.scenes import draw_scene
from vllm_annotate.inputs.plan import make_plan
from vllm_annotate.inputs.source import Source
from vllm_annotate.pipeline.many_inputs import AT_ONCE
from vllm_annotate.storage.workspace import Workspace

PROGRAM = Path(sys.executable).with_name("vllm-annotate")
OPEN = 10  # rows of each file without an answer, in the first run
EARLY, PLANNED = 10, 40  # files
NO_ANSWER = "}\n"


def write_corpus(folder: Path, files: int, count: int, left: int = OPEN, answer: str = "") -> None:
    """Writes the input files, the images of their `left` open rows, and the outputs with all others."""
    for name in ("inputs", "images", "labeled"):
        folder.joinpath(name).mkdir()
    draw_scene(random.Random(1), 196, 168, 1).image.save(folder / "one.jpg", quality=90)
    for number in range(files):
        write_file(folder, f"{number:05d}", count, left, answer)


def write_file(folder: Path, name: str, count: int, left: int = OPEN, answer: str = "") -> None:
    """Writes an input file and, if it has more rows, the output with all but the first `left` of them."""
    paths = [f"{name}/{number:09d}.jpg" for number in range(count)]
    lines = (row.partition(" ")[2].partition(" ")[2] for row in rows(count))
    write_lines(
        folder / "inputs" / f"{name}.jsonl",
        (f'{{"image_path": "{path}", {rest}}}\n' for path, rest in zip(paths, lines, strict=True)),
    )
    (folder / "images" / name).mkdir()
    for path in paths[:left]:
        os.link(folder / "one.jpg", folder / "images" / path)
    if count > left:
        answered = (f'{{"image_path": "{path}"{answer or NO_ANSWER}' for path in paths[left:])
        write_lines(folder / "labeled" / f"{name}.jsonl", answered)


def run(folder: Path, url: str, *more: str) -> tuple[float, list[float]]:
    """Annotates; returns seconds, and the peak MiB once EARLY files are finished, and at the end."""
    paths = ["--input", folder / "inputs", "--image-root", folder / "images", "--output", folder / "labeled"]
    begun = time.monotonic()
    process = subprocess.Popen(
        [str(PROGRAM), "annotate", *map(str, paths), "--api-base", f"{url}/v1", *more],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
    )
    peaks: list[float] = []
    last = 0.0
    while process.poll() is None:
        last = peak_mebibytes(process.pid) or last
        if not peaks and finished(folder) >= EARLY:
            peaks.append(last)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    return time.monotonic() - begun, [*peaks, last]


def plan_alone(folder: Path, files: int, count: int) -> float:
    """Plans input files, whose outputs have all rows but OPEN, two at a time; returns rows a second."""
    workspaces = []
    for number in range(files):
        workspace = Workspace(folder / "planned" / f"{number:05d}.jsonl")
        workspace.parts.mkdir(parents=True)
        shutil.copy(folder / "labeled" / workspace.output.name, workspace.output)
        workspaces.append(workspace)
    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        sources = [Source(folder / "inputs" / workspace.output.name) for workspace in workspaces]
        list(threads.map(make_plan, sources, workspaces, [500] * files))
    seconds = time.monotonic() - begun
    shutil.rmtree(folder / "planned")
    return files * count / seconds


def finished(folder: Path) -> int:
    """How many files the run says are finished."""
    path = folder / "labeled.work" / "finished.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main(files: int = 100, count: int = 50_000, *, whole: bool = False) -> None:
    """Prints the figures of planning and of four runs."""
    alone = "--without-prefect"
    with tempfile.TemporaryDirectory(prefix="folders-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        write_corpus(folder, files, count, answer=f", {ANSWER}" if whole else "")
        rates = [plan_alone(folder, min(files, PLANNED), count) for _ in range(5)]
        print(
            f"planning alone, {AT_ONCE} files at a time: {spread([rate / 1e6 for rate in rates])} million rows a second"
        )
        with stand_in("--canned") as url:
            seconds, peaks = run(folder, url, alone)
            rate, mebibytes = files * count / seconds, " and ".join(f"{peak:.0f}" for peak in peaks)
            print(
                f"{files} files of {count:,} rows, {OPEN} open in each: {seconds:.1f} s, with all the rest {rate:,.0f} "
                f"rows a second; peak {mebibytes} MiB (once {EARLY} files were finished, and at the end)"
            )
            seconds, peaks = run(folder, url, alone)
            print(f"again, with nothing new: {seconds:.1f} s, peak {peaks[-1]:.0f} MiB")
            write_file(folder, f"{files:05d}", OPEN)
            seconds, peaks = run(folder, url, alone)
            print(f"a new file with {OPEN} rows: {seconds:.1f} s, peak {peaks[-1]:.0f} MiB")
            write_file(folder, f"{files + 1:05d}", OPEN)
            with reporting_to_prefect("folders-"):
                seconds, peaks = run(folder, url)
            print(f"another, with a Prefect server running: {seconds:.1f} s, peak {peaks[-1]:.0f} MiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), whole=sys.argv[3:] == ["whole"])
