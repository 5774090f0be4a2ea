"""Failures that are asked again: out of the failures file while their answers may reach the output at any time."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from vllm_annotate.inputs.source import done_paths, output_lines
from vllm_annotate.storage.atomic import replacing, sync_folder
from vllm_annotate.storage.workspace import Workspace


def take_out_asked(workspace: Workspace, *parts: Path) -> None:
    """Moves the failures of planned images out of the failures file, so that no image is ever in both files.

    With `parts`, those of the images that have an answer in one of them.
    """
    put_back_asked(workspace)
    failures = workspace.failures
    if not failures.exists():
        return
    images = output_lines(*parts) if parts else pl.scan_parquet(workspace.plan_rows, glob=False)
    asked = line_numbers(output_lines(failures).join(images.select("image_path"), on="image_path", how="semi"))
    if asked.is_empty():
        return
    with replacing(workspace.asked_failures) as file:
        file.writelines(lines_with(failures, asked, chosen=True))
    _replace(failures, lines_with(failures, asked, chosen=False))


def put_back_asked(workspace: Workspace) -> None:
    """Moves failures that a run took out, and did not come to ask again, back into the failures file."""
    asked, failures = workspace.asked_failures, workspace.failures
    if not asked.exists():
        return
    known = pl.concat([done_paths(*workspace.outputs), done_paths(failures)])
    open_ones = line_numbers(output_lines(asked).join(known, on="image_path", how="anti"))
    nothing = pl.Series(dtype=pl.UInt32)
    _replace(failures, lines_with(failures, nothing, chosen=False), lines_with(asked, open_ones, chosen=True))
    asked.unlink()


def line_numbers(lines: pl.LazyFrame) -> pl.Series:
    """The numbers of lines of a file, rising."""
    return lines.select("line").collect(engine="streaming")["line"].sort()


def lines_with(path: Path, numbers: pl.Series, *, chosen: bool) -> Iterator[bytes]:
    """Yields the lines with these numbers (from 1, rising), or all others."""
    if not path.exists():
        return
    wanted = iter(numbers)
    following = next(wanted, None)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            is_next = number == following
            if is_next:
                following = next(wanted, None)
            if is_next == chosen:
                yield line if line.endswith(b"\n") else line + b"\n"


def _replace(failures: Path, *lines: Iterable[bytes]) -> None:
    """Replaces the failures file; without lines it is removed."""
    with replacing(failures) as file:
        for some in lines:
            file.writelines(some)
    if not failures.stat().st_size:
        failures.unlink()
        sync_folder(failures.parent)
