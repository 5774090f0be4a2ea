"""A sweep: pilots of one sample with several servers and recipes, each in an output of its own."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_annotate.errors import UsageError
from vllm_annotate.inference.keys import NO_KEY
from vllm_annotate.inputs.listing import shown
from vllm_annotate.job import Job, remembered_job
from vllm_annotate.pipeline.pilot import with_sample
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.report.report import Report
from vllm_annotate.results.lines import path_of
from vllm_annotate.results.parts import answer_files
from vllm_annotate.results.written import Written, written_files
from vllm_annotate.serving.settings import Server
from vllm_annotate.storage.output_paths import names_folder
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.storage.yaml_fields import check_names, read_value

FORM = "write a list of two variants or more, such as [{name: small, recipe: {max_visual_tokens: 512}}, …]"
# What figures depend on. A larger sample contains a smaller one, and `check_sample` refuses a smaller one.
MEASURED = (
    "input", "image_root", "image_column", "caption_column", "server", "max_concurrency", "limit", "sample_seed",
)  # fmt: skip


class Variant(BaseModel):
    """What is different in one pilot of a sweep."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: str = Field(pattern=r"^[\w-]{1,64}$")  # of its output; a dot would make it another one's file
    server: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


def read_sweep(path: Path) -> list[Variant]:
    """The variants in a YAML or JSON file. Raises UsageError."""
    named = f"--sweep {str(path)!r}"
    items = read_value(path, named, FORM)
    if not isinstance(items, list) or len(items) < 2:
        has = f"has {len(items)}" if isinstance(items, list) else "is no list"
        raise UsageError(f"{named} {has}: {FORM}")
    variants = [_variant(item, f"variant {number} of {named}") for number, item in enumerate(items, start=1)]
    # File systems take names for equal that differ in case, or in how an accent is written.
    keys = [unicodedata.normalize("NFC", variant.name).casefold() for variant in variants]
    if again := [each.name for number, each in enumerate(variants) if keys[number] in keys[:number]]:
        raise UsageError(f"{named} has {again[0]!r} twice: give each variant a name of its own")
    return variants


def _variant(item: Any, named: str) -> Variant:
    if not isinstance(item, dict):
        raise UsageError(f"{named} is not a mapping: {FORM}")
    check_names(item, named, Variant)
    try:
        variant = Variant.model_validate(item)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = str(problem["loc"][0])
        if field == "name":
            raise UsageError(
                f"{named} has name {item.get('name')!r:.80}: give it a name of 1 to 64 letters, digits, - and _, in "
                "quotes if it is a number"
            ) from None
        raise UsageError(f"{named}: {field} is not a mapping: write its fields, such as {field}: {{…}}") from None
    check_names(variant.server, f"server of {named}", Server)
    check_names(variant.recipe, f"recipe of {named}", Recipe)
    return variant


def variant_fields(fields: Mapping[str, Any], variant: Variant, folder: Path) -> dict[str, Any]:
    """The fields of a variant's job, from those of the job that all share.

    Its output is a file or a folder, as that of the shared job is. With endpoints or a start, its server has no fields
    of the shared one. Its endpoints get only the variant's own key, and without one not that of the environment either:
    a key must not reach another host.
    """
    ending = "" if names_folder(str(fields.get("output"))) else ".jsonl"
    found = dict(fields) | {"output": str(folder / f"{variant.name}{ending}")}
    if variant.server:
        alone = variant.server.keys() & {"endpoints", "start"}
        found["server"] = dict(variant.server) if alone else (found.get("server") or {}) | variant.server
        if variant.server.get("endpoints") and not variant.server.get("api_key"):
            found["server"]["api_key"] = NO_KEY
    if variant.recipe:
        found["recipe"] = (found.get("recipe") or {}) | variant.recipe
    with_sample(found)
    return found


def check_same(job: Job) -> None:
    """Raises UsageError if the output has answers of a pilot whose figures are not those of this one."""
    workspace = Workspace.at(job.output)
    growing = workspace.states.glob("*/growing.jsonl")
    answers = [*written_files(workspace.output), *growing, *answer_files(workspace)]
    if not any(path.stat().st_size for path in answers):
        return
    before = remembered_job(workspace.output)
    now = job.without_secrets()
    if changed := [name for name in MEASURED if before and before.get(name) != now.get(name)]:
        raise UsageError(
            f"{workspace.output} was measured with another {' and '.join(changed)}: {_new_start(workspace)}"
        )


def check_sample(job: Job, report: Report) -> None:
    """Raises UsageError if the output has answers of images that this pilot did not select: no other variant has."""
    workspace, images = Workspace.at(job.output), report.images
    rows = sum(path_of(line) is not None for line in Written.of(workspace.output).lines())
    if (others := rows - images.already_done - images.answered) > 0:
        raise UsageError(
            f"{workspace.output} has answers of {others} images that are not in this sample, as the sample was larger "
            f"or {shown(job.input)} has changed since: {_new_start(workspace)}"
        )


def _new_start(workspace: Workspace) -> str:
    return f"give the variant another name, or remove {workspace.output} and {workspace.work}"
