"""The answers of a pilot, taken into a run of the whole input with the same recipe."""

from typing import Any

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.plan import read_chunks
from vllm_annotate.inputs.plan_file import Plan
from vllm_annotate.inputs.source import Source
from vllm_annotate.job import images_known, remembered_job
from vllm_annotate.recipe.guard import read_recipe
from vllm_annotate.results.lines import begins_with_row, path_of
from vllm_annotate.results.numbers import is_same, numbers_of
from vllm_annotate.results.part_file import PartFile
from vllm_annotate.results.parts import answers_path, row_of
from vllm_annotate.storage.workspace import Workspace

MOST_BYTES = 2 * 1024**3  # of a pilot's output: it is read whole


def take_pilot(
    workspace: Workspace, plan: Plan, source: Source, images: dict[str, Any], recipe_fingerprint: str
) -> int:
    """Copies the pilot's answers of planned images into the parts; returns how many.

    Only answers of the same recipe and image root, to rows that have not changed since by a byte.
    """
    pilot = workspace.pilot
    if not plan.rows or not pilot.output.is_file() or pilot.output.stat().st_size > MOST_BYTES:
        return 0
    try:
        recipe = read_recipe(pilot)
    except UsageError:
        recipe = None
    if recipe is None or recipe["fingerprint"] != recipe_fingerprint:
        return 0
    if images_known(remembered_job(pilot.output)) != images or not is_same(numbers_of(pilot), numbers_of(workspace)):
        return 0
    with pilot.output.open("rb") as file:
        answers = {path: line for line in file if line.endswith(b"\n") and (path := path_of(line)) is not None}
    taken, paths = 0, pl.Series(list(answers), dtype=pl.String).implode()
    for chunk, rows in read_chunks(workspace, plan.chunks):
        found = rows.filter(pl.col("image_path").is_in(paths)).select("image_path", "row")
        if found.is_empty():
            continue
        part = PartFile(answers_path(workspace, chunk))
        try:
            for image_path, text in found.iter_rows():
                line, row = answers[image_path], row_of(image_path, text, source, workspace)
                if image_path not in part.paths and begins_with_row(line, row):
                    part.append(image_path, line)
                    taken += 1
        finally:
            part.close()
    return taken
