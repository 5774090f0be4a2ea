"""`make demo`: draws scenes, annotates them with the flow and the stand-in, and compares the boxes with the truth."""

import argparse
import json
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.processes import stand_in
from demo.scenes import write_folder
from demo.scoring import score
from vllm_annotate.cli.main import main as vllm_annotate

IMAGES = 60


def main() -> int:
    """Runs the demo; returns 0 if it went as expected."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--folder", type=Path, default=Path("demo-output"))
    options.add_argument("--fresh", action="store_true", help="start over instead of resuming")
    given = options.parse_args()
    folder: Path = given.folder
    if given.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    input_path, truth_path = write_folder(folder, IMAGES)
    output = folder / "labeled.jsonl"
    with stand_in("--prefill-seconds", "0.3") as base_url:  # long enough for a chart
        code = vllm_annotate(
            ["annotate", "--input", str(input_path), "--image-root", str(folder / "images"), "--output", str(output),
             "--api-base", f"{base_url}/v1", "--chunk-size", "20"]
        )  # fmt: skip
        asked = read(f"{base_url}/stand_in/asked")
    show(Console(), output, truth_path, "by a stand-in that sees coloured shapes, not by a model")
    requests = sum(asked["texts"].values())
    hint = "Run `make demo` again to see it resume." if requests else "No answered image was requested again."
    print(f"Requests sent by this run: {requests}. {hint}")
    return 0 if code == 1 else 1  # the demo includes one corrupt file


def read(url: str) -> dict[str, Any]:
    """The JSON object at a URL."""
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - http on loopback
        return dict(json.load(response))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def show(console: Console, output: Path, truth_path: Path, by: str) -> None:
    """Prints the first results, the score, the failures and the files."""
    truths = {row["image_path"]: row["objects"] for row in lines_of(truth_path)}
    rows = lines_of(output)
    table = Table(title=f"The first answers ({by})")
    for column in ("image", "caption", "objects: name and box (0–1000)", "IoU"):
        table.add_column(column, overflow="fold")
    for row in rows[:8]:
        found = "\n".join(f"{item['name']} {item['bbox']}" for item in row["objects"])
        one = score([(truths[row["image_path"]], row["objects"])])
        table.add_row(row["image_path"], row["caption"], found, f"{one.mean_iou:.3f}")
    console.print(table)
    total = score([(truths[row["image_path"]], row["objects"]) for row in rows])
    print(
        f"{len(rows)} images in the output, {total.objects} true objects: mean IoU {total.mean_iou:.4f}, "
        f"recall at IoU 0.5 {total.recall:.4f}."
    )
    failures = output.with_name("labeled.failures.jsonl")
    for row in lines_of(failures):
        print(f"failed: {row['image_path']}: {row['failure']['kind']}: {row['failure']['message']}")


if __name__ == "__main__":
    sys.exit(main())
