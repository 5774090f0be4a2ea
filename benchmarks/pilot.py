"""Compares a pilot's estimate with the whole run: `python -m benchmarks.pilot [images] [sample] [repetitions]`.

Each repetition draws other samples and lengths of answers, on a stand-in of its own, without Prefect. The input names
one image under many links: what is measured is the estimate, not the client. The whole run does not take the
pilot's answers. Prints a line per repetition, and in how many the range held the true time.
`python -m benchmarks.pilot vllm` does it once on a real vLLM, with the tiny grounder and 100 of 1,000 drawn images.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.tiny_grounder import tiny_grounder
from demo.processes import TINY_GROUNDER_RECIPE
from demo.scenes import write_small_folder
from stand_in.process import StandIn

SLOTS = 64
SERVER = (
    "--canned", "--slots", str(SLOTS), "--prefill-seconds", "0.1", "--decode-seconds-per-token", "0.004",
    "--completion-tokens", "100", "--completion-spread", "0.5",
)  # fmt: skip


def write_input(folder: Path, images: int) -> Path:
    """Writes an input of so many images, all links to one that is sent as it is."""
    (folder / "images").mkdir()
    source, names = folder / "images" / "source.jpg", [f"{number:06d}.jpg" for number in range(images)]
    Image.effect_noise((448, 448), 60).convert("RGB").save(source)
    for name in names:
        (folder / "images" / name).symlink_to(source)
    rows = (json.dumps({"image_path": name, "caption": f"picture {name}"}) + "\n" for name in names)
    path = folder / "captions.jsonl"
    path.write_text("".join(rows))
    return path


def report_of(command: str, source: Path, output: Path, url: str, *more: str) -> dict[str, object]:
    """Runs a command of vllm-annotate; returns its report."""
    arguments = ["--input", source, "--image-root", source.parent / "images", "--output", output, "--api-base", url]
    ran = subprocess.run(
        [Path(sys.executable).with_name("vllm-annotate"), command, *map(str, arguments), "--without-prefect", *more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        sys.exit(ran.stderr)
    name = f"{output.stem}.pilot.report.json" if command == "pilot" else f"{output.stem}.report.json"
    found: dict[str, object] = json.loads((output.parent / name).read_text())
    return found


def is_held(source: Path, outputs: Path, url: str, share: float, pilot: list[str], *more: str) -> bool:
    """Runs a pilot and the whole; prints both times of the other images, and says whether the range holds the true one.

    `share` is that of the images that the pilot leaves out.
    """
    estimate = report_of("pilot", source, outputs / "labeled.jsonl", url, *pilot, *more)["estimate"]
    # Another name: it shall not take the pilot's answers.
    whole = report_of("annotate", source, outputs / "whole.jsonl", url, *more)
    assert isinstance(estimate, dict)  # noqa: S101 - for the type checker
    low, likely, high = (3600 * estimate["hours"][name] for name in ("low", "likely", "high"))
    seconds = float(str(whole["seconds"])) * share
    print(f"{likely:.1f} s ({low:.1f} to {high:.1f}); it took {seconds:.1f} s", flush=True)
    return bool(low <= seconds <= high)


def main(images: int = 20_000, sample: int = 200, repetitions: int = 10) -> None:
    """Runs the benchmark on the stand-in."""
    held = 0
    with tempfile.TemporaryDirectory() as folder:
        source = write_input(Path(folder), images)
        for seed in range(repetitions):
            outputs = Path(folder) / str(seed)
            outputs.mkdir()
            with StandIn.started(*SERVER) as server:
                chosen = ["--sample", str(sample), "--sample-seed", str(seed)]
                held += is_held(source, outputs, f"{server.url}/v1", 1 - sample / images, chosen)
    print(f"the range held the true time in {held} of {repetitions}")


async def on_vllm(images: int = 1000, sample: int = 100) -> None:
    """Runs it once on a real vLLM."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, _ = write_small_folder(folder, images, shapes=3)
        recipe = ("--recipe", str(TINY_GROUNDER_RECIPE))
        async with tiny_grounder(folder) as server:
            url, chosen = server.url, ["--sample", str(sample)]
            await asyncio.to_thread(is_held, source, folder, url, 1 - sample / images, chosen, *recipe)


if __name__ == "__main__":
    if sys.argv[1:] == ["vllm"]:
        asyncio.run(on_vllm())
    else:
        main(*map(int, sys.argv[1:]))
