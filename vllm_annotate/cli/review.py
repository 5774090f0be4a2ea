"""`vllm-annotate review`: gives people the most doubtful answers, and takes back what they corrected.

Exit codes: 0 done; 1 done, but some images or boxes were left out; 2 refused, nothing written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.export import count_of, existing, image_root_of, new_file, say_if_inside
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.options import command, option
from vllm_annotate.errors import UsageError
from vllm_annotate.storage.locations import local_path

MOST = "200"
NAMED = 5  # images in a message


def app() -> App:
    """The command's options."""
    return command(
        "review",
        "Write the most doubtful answers as tasks for Label Studio, or read what people corrected there.",
        [
            option("output", "An output of annotate, at a path or a URL."),
            option("to", "The new file for the tasks; the labelling config is written beside it."),
            option("most", f"How many images to review. (default: {MOST})"),
            option("image_url", "What goes before the image path in the tasks, such as https://host/images/ or "
                   "/data/local-files/?d=images/."),
            option("image_root", "Folder with the images, for rows of old outputs without width and height."),
            option("from_", "What Label Studio exported, as JSON or JSON-MIN. Corrected rows go to "
                   "labeled.reviewed.jsonl beside the output."),
        ],
    )  # fmt: skip


def run(given: Mapping[str, Any], console: Console, _interrupts: Interrupts) -> int:
    """Writes tasks or corrected rows; returns the exit code."""
    from vllm_annotate.results.local_output import given_output

    if not given.get("output"):
        raise UsageError("--output: required")
    if bool(given.get("to")) == bool(given.get("from_")):
        raise UsageError("set --to to write tasks, or --from to read what was corrected")
    where = given_output(given["output"], "--output")
    return _read(where, given, console) if given.get("from_") else _write(where, given, console)


def _write(where: Path | str, given: Mapping[str, Any], console: Console) -> int:
    from vllm_annotate.results.local_output import local_output
    from vllm_annotate.review.tasks import MAX_TASKS, write_tasks
    from vllm_annotate.storage.new_files import check_new

    most, to = count_of("--most", given.get("most") or MOST), new_file("--to", given["to"])
    if most > MAX_TASKS:
        raise UsageError(f"--most {most} is more than anyone reviews: write at most {MAX_TASKS}, or export all")
    root = image_root_of(given.get("image_root"))
    check_new("--to", to)  # before an output is copied
    with local_output(where) as here:
        images, without_size = write_tasks(existing(here.path), most, to, root, given.get("image_url") or "")
    console.show(f"{images} images to review: {to}\nlabelling config: {to.with_suffix('.xml')}")
    if without_size:
        console.show(f"left out: {without_size} without width and height; set --image-root")
    say_if_inside(where, given.get("image_root"), console)
    return 1 if without_size else 0


def _read(where: Path | str, given: Mapping[str, Any], console: Console) -> int:
    from vllm_annotate.results.local_output import local_output
    from vllm_annotate.review.corrections import import_reviews
    from vllm_annotate.review.label_studio_export import read_reviews

    export = local_path(given["from_"], "--from")
    read_reviews(export)  # before an output is copied
    with local_output(where) as here:
        done = import_reviews(existing(here.path), export)
        (target,) = here.publish([done.target])
    replaced = f", {done.replaced} of them in place of an earlier review" if done.replaced else ""
    console.show(f"{done.images} images reviewed{replaced}: {target}")
    if done.not_reviewed:
        console.show(f"{done.not_reviewed} tasks not reviewed")
    if done.invalid_boxes:
        console.show(f"left out: {done.invalid_boxes} boxes without a label, or outside the image")
    if done.unknown:
        some = ", ".join(map(repr, done.unknown[:NAMED])) + (", …" if len(done.unknown) > NAMED else "")
        console.show(f"left out: {len(done.unknown)} images that {where} does not have: {some}")
    return 1 if done.unknown or done.invalid_boxes else 0


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "nothing was written"
