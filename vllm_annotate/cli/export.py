"""`vllm-annotate export`: writes an output in the format of a trainer or a tool for labelling.

Exit codes: 0 written; 1 written, but lines of the output that are not as a run writes them were left out; 2 refused,
nothing written.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.options import command, option
from vllm_annotate.errors import UsageError
from vllm_annotate.storage.locations import URL, local_path

if TYPE_CHECKING:
    from vllm_annotate.export.export import Export

FORMATS = ("coco", "odvg", "ms-swift", "label-studio", "parquet")
OF_FILES = FORMATS[:-1]  # they name image files
REQUIRED = ("output", "format", "to")


def app() -> App:
    """The command's options."""
    return command(
        "export",
        "Write an output in the format of a trainer or a tool for labelling.",
        [
            option("output", "An output of annotate, at a path or a URL."),
            option("format", f"One of {', '.join(FORMATS)}."),
            option("to", "The new file; it must not exist. With --split, its name gets that of the split."),
            option("image_root", "Folder with the images. Rows of old outputs without width and height get them from "
                   "there; image paths in ms-swift begin with it."),
            option("card", "A new file for a dataset card in Markdown, such as README.md beside the export."),
            option("image_url", "What goes before the image path in the URLs of label-studio, such as "
                   "https://host/images/ or /data/local-files/?d=images/."),
            option("split", "Shares of splits, as in train=0.9,val=0.05,test=0.05: a file for each. A hash of the "
                   "image path decides, so an image stays in its split.", list),
            option("names", "Names to export, or a file with one per line; case and width do not matter. "
                   "(default: all)", list),
            option("min_count", "Leave out names with fewer objects in the whole output. (default: 1)"),
            option("min_size", "Leave out boxes under this share of the image, such as 0.001."),
            option("without_flag", "Leave out images with this flag; can be repeated. any: with any flag.", list),
            option("min_agreement", "Leave out images whose audit found less agreement. Images without one stay."),
        ],
    )  # fmt: skip


def run(given: Mapping[str, Any], console: Console, _interrupts: Interrupts) -> int:
    """Writes the files; returns the exit code."""
    from vllm_annotate.export import export as exporting
    from vllm_annotate.export.about import About
    from vllm_annotate.export.card import card
    from vllm_annotate.export.selection import read_selection, read_splits
    from vllm_annotate.export.survey import Output
    from vllm_annotate.results.local_output import given_output, local_output
    from vllm_annotate.results.provenance import model_of
    from vllm_annotate.storage.new_files import creating

    if missing := [f"--{name}" for name in REQUIRED if not given.get(name)]:
        raise UsageError(f"{' and '.join(missing)}: required")
    if (name := given["format"]) not in FORMATS:
        raise UsageError(f"--format {name!r} is unknown: use one of {', '.join(FORMATS)}")
    selection = read_selection(
        given.get("without_flag") or [], given.get("min_size"), given.get("names") or [], given.get("min_agreement")
    )
    splits, min_count = read_splits(given.get("split") or []), count_of("--min-count", given.get("min_count") or "1")
    where, root = given_output(given["output"], "--output"), image_root_of(given.get("image_root"))
    to = new_file("--to", given["to"])
    cards = [new_file("--card", given["card"])] if given.get("card") else []
    exporting.new_files(name, to, splits)  # before an output is copied
    with creating("--card", *cards) as unfinished, local_output(where) as here:
        output = Output(existing(here.path), selection, exporting.FORMATS[name].needs_size, root)
        about = About({}, model_of(output.path), _absolute(given.get("image_root")), given.get("image_url") or "")
        done = exporting.export(output, name, to, splits, about, min_count)
        for path, place in zip(unfinished, cards, strict=True):
            path.write_text(card(done, output.path, place), "utf-8")
    _show(done, console)
    if name in OF_FILES:
        say_if_inside(where, given.get("image_root"), console)
    return 0 if done.is_complete else 1


def say_if_inside(where: Path | str, image_root: str | None, console: Console) -> None:
    """Says how other programs find images that are inside the input."""
    from vllm_annotate.job import remembered_job

    with suppress(UsageError):  # of an output that is a file in another, or that no run wrote
        if image_root is None and (had := remembered_job(where)) and not had.get("image_root"):
            console.show("The images are inside the input: docs/inputs.md says how to unpack them for other programs.")


def existing(path: Path) -> Path:
    """Returns the path of an output. Raises UsageError unless it is a file, or a folder of them."""
    from vllm_annotate.results.written import written_files

    if not written_files(path):
        what = "has no .jsonl file" if path.is_dir() else "is not a file"
        raise UsageError(f"--output {str(path)!r} {what}: name the output of a run")
    return path


def new_file(option: str, where: str) -> Path:
    """Returns the path of a file to make. Raises UsageError for a folder, also one that does not exist yet."""
    path = local_path(where, option, "only local files are written: name one, and upload it")
    if os.path.basename(where) in ("", ".", ".."):  # noqa: PTH119 - a path drops the slash at the end
        raise UsageError(f"{option} {where!r} is a folder: add the name of the new file")
    return path


def image_root_of(where: str | None) -> Any:
    """Returns the image root, or None. Raises UsageError if it is not a folder that can be read."""
    from vllm_annotate.pipeline.found_input import found_image_root
    from vllm_annotate.storage.locations import location

    if where is None:
        return None
    try:
        return found_image_root(location(where))
    except ValueError as error:
        raise UsageError(f"--image-root {where!r}: {error}") from None


def _absolute(where: str | None) -> str:
    """Returns a folder as other programs find it from wherever they run."""
    if not where or URL.match(where):
        return where or ""
    return os.path.abspath(Path(where).expanduser())  # noqa: PTH100


def count_of(option: str, text: str) -> int:
    """Returns a whole number from 1. Raises UsageError."""
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text)):
        raise UsageError(f"{option} {text!r} is not a count: write a whole number from 1")
    return int(text)


def _show(done: "Export", console: Console) -> None:
    from vllm_annotate.export.survey import in_words

    for split, path in done.files.items():
        console.show(f"{done.images[split]} images, {done.objects[split]} objects: {path}")
    if done.config is not None:
        console.show(f"labelling config: {done.config}")
    if done.found.reviewed:
        console.show(f"{done.found.reviewed} images as people corrected them")
    if left_out := in_words(done.found):
        console.show(left_out)


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "nothing was written"
