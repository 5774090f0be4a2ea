"""What one run shares, opened in the order in which it can go wrong: paths, server, lock, recipe."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from blocks import AnnotationRecipe, VLLMServer
from flows.annotator import Annotator
from flows.errors import UsageError
from flows.families import resolve_family
from flows.inference import Inference
from flows.plan import Plan, Source, check_source, make_plan, open_plan, plan_is_for, remove_plan
from flows.recipe import fingerprint, recipe_settings
from flows.store import OUR_FIELDS, settle
from flows.workspace import Workspace

SAMPLED_PATHS, FEWEST_PATHS = 100, 10


@dataclass(frozen=True)
class Run:
    """A run whose server answers, whose paths are good, and which alone writes its output."""

    workspace: Workspace
    source: Source
    image_root: Path
    model: str
    recipe_settings: dict[str, Any]
    recipe_fingerprint: str
    versions: dict[str, dict[str, Any]]  # endpoint → what its /version says
    annotator: Annotator


# Clients and semaphores belong to the flow's event loop: they reach its tasks by context, not as task parameters. Here
# and not beside the flow, because Prefect's `serve` pickles the flow with the globals it names, and this one can't be.
_RUN: ContextVar[Run] = ContextVar("run")


def set_current_run(run: Run) -> None:
    """Makes `run` the one that `current_run` returns, in this context and in tasks started from it."""
    _RUN.set(run)


def current_run() -> Run:
    """The run of the flow that is running."""
    return _RUN.get()


@asynccontextmanager
async def open_run(
    *,
    input: Path,  # noqa: A002 - these are the flow's parameters, by name
    image_root: Path,
    output: Path,
    server: VLLMServer | None,
    recipe: AnnotationRecipe | None,
    max_concurrency: int | Literal["auto"],
    image_column: str,
    caption_column: str,
    error_budget: float,
    server_wait_seconds: float,
    request_timeout_seconds: float,
    warn: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Run]:
    """A run, for as long as the context lasts. Raises UsageError or ServerFault before anything is written."""
    server, recipe = server or VLLMServer(), recipe or AnnotationRecipe()
    source = Source(input.expanduser(), image_column, caption_column)
    image_root = image_root.expanduser()
    workspace = Workspace.at(output)
    check_paths(source, image_root, workspace)
    columns = await asyncio.to_thread(check_source, source)
    if replaced := [name for name in columns if name in replaced_columns(source)]:
        warn(f"the input's columns {', '.join(map(repr, replaced))} are replaced in the output by ours of these names")
    async with Inference(
        server.endpoints,
        server.resolved_api_key(),
        max_concurrency=max_concurrency,
        request_timeout_seconds=request_timeout_seconds,
        server_wait_seconds=server_wait_seconds,
        warn=warn,
    ) as inference:
        model = await inference.check(server.model)
        versions = await inference.versions()
        family = resolve_family(recipe.family, model)
        identity = fingerprint(recipe, model)
        with workspace.locked():
            settings = recipe_settings(recipe, model)
            workspace.guard_recipe(settings, identity)
            async with Annotator(inference, recipe, family, model, image_root, error_budget) as annotator:
                yield Run(workspace, source, image_root, model, settings, identity, versions, annotator)


def replaced_columns(source: Source) -> set[str]:
    """Names of input columns whose values the output does not keep."""
    asked = {"image_path", "caption"} - {source.image_column, source.caption_column or "caption"}
    return asked | set(OUR_FIELDS)


def check_paths(source: Source, image_root: Path, workspace: Workspace) -> None:
    """Raises UsageError where the image root is no folder, or the output would overwrite the input."""
    if not image_root.is_dir():
        raise UsageError(f"image root {str(image_root)!r} is not a folder: set --image-root to where the images lie")
    if not os.access(image_root, os.R_OK | os.X_OK):
        raise UsageError(f"image root {str(image_root)!r} cannot be read by this user")
    if source.path.resolve() == workspace.output:
        raise UsageError(f"input and output are both {workspace.output}: choose another --output")


def current_plan(run: Run, chunk_size: int) -> Plan:
    """The plan in progress if nobody has edited its input or output; else a new one, once the old one is settled.

    Raises UsageError where the input turns out to be broken.
    """
    workspace = run.workspace
    try:
        plan = open_plan(workspace)
        if plan is None or not plan_is_for(workspace, run.source):
            settle(workspace, plan)
            remove_plan(workspace)
            plan = make_plan(run.source, workspace, chunk_size)
            _check_image_root(run, plan)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _unreadable(run, error) from None
    except OSError as error:
        if error.errno is not None:  # the disk's, not the decompressor's
            raise
        raise _unreadable(run, error) from None
    workspace.record_recipe(run.recipe_settings, run.recipe_fingerprint)
    return plan


def _check_image_root(run: Run, plan: Plan) -> None:
    """Raises UsageError where a new job's images are nowhere: the root is wrong, and not each of a million files."""
    if plan.counts.already_done:
        return
    stride = max(1, plan.rows // SAMPLED_PATHS)
    paths = pl.scan_parquet(run.workspace.plan_rows, glob=False).select("image_path").gather_every(stride).collect()
    sample = paths["image_path"].to_list()
    if len(sample) >= FEWEST_PATHS and not any(_is_file(run.image_root, path) for path in sample):
        remove_plan(run.workspace)
        raise UsageError(
            f"none of {len(sample)} sampled images is a file under {run.image_root}, the first would be "
            f"{run.image_root / sample[0]}: set --image-root to what the paths are relative to"
        )


def _is_file(root: Path, path: str) -> bool:
    try:
        return (root / path).is_file()
    except (OSError, ValueError):
        return False


def _unreadable(run: Run, error: BaseException) -> UsageError:
    files = f"{run.source.path} or {run.workspace.output}"
    return UsageError(f"{files} cannot be read to its end, make it whole again: {error!s:.300}")
