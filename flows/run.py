"""What one run shares, opened in the order in which it can go wrong: paths, server, lock, recipe."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from blocks import AnnotationRecipe, VLLMServer
from flows.annotator import Annotator
from flows.endpoint import NO_KEY
from flows.errors import UsageError
from flows.families import Family, resolve_family
from flows.inference import Inference
from flows.plan import Plan, Source, check_source, make_plan, open_plan, plan_is_for, remove_plan
from flows.recipe import fingerprint, recipe_settings
from flows.serving.keeper import Keeper, kept_servers, watching
from flows.serving.preflight import preflight
from flows.shard import Shard
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
    keepers: Sequence[Keeper] = ()  # of the servers that are started for the run


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
    shard: str = "",
    error_budget: float,
    server_wait_seconds: float,
    request_timeout_seconds: float,
    say: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Run]:
    """A run, for as long as the context lasts. Raises UsageError or ServerFault before anything is written."""
    server, recipe = server or VLLMServer(), recipe or AnnotationRecipe()
    source, image_root, workspace = await _checked_files(
        input, image_root, output, image_column, caption_column, shard, warn
    )
    async with AsyncExitStack() as stack:
        keepers: list[Keeper] = []
        if server.start is not None:
            found = await asyncio.to_thread(preflight, server.start, server.model, own_key(server))
            found.check()
            for note in found.notes:
                say(note)
            # Ahead of the minutes-long start: nothing that can be refused should wait for it.
            stack.enter_context(workspace.locked())
            guard_recipe(workspace, recipe, found.model_name)
            folder = Path(server.start.log_folder or workspace.logs).expanduser().resolve()
            keepers = await stack.enter_async_context(kept_servers(found.replicas, folder, say))
        inference = await stack.enter_async_context(
            Inference(
                server.urls(),
                server.resolved_api_key(),
                max_concurrency=max_concurrency,
                request_timeout_seconds=request_timeout_seconds,
                server_wait_seconds=server_wait_seconds,
                warn=warn,
            )
        )
        await stack.enter_async_context(watching(keepers, inference.pool))
        model = await inference.check(server.expected_model())
        versions = await inference.versions()
        if server.start is None:
            stack.enter_context(workspace.locked())
        family, settings, identity = guard_recipe(workspace, recipe, model)
        annotator = Annotator(inference, recipe, family, model, image_root, error_budget)
        await stack.enter_async_context(annotator)
        yield Run(workspace, source, image_root, model, settings, identity, versions, annotator, keepers)


async def check_run(**parameters: Any) -> None:
    """Raises what `open_run` with these parameters would, as far as it can be known without starting a server."""
    server: VLLMServer | None = parameters["server"]
    if server is None or server.start is None:
        async with open_run(**parameters):
            return
    names = ("input", "image_root", "output", "image_column", "caption_column", "shard")
    files = {name: parameters[name] for name in names}
    await _checked_files(**files, warn=lambda _: None)
    (await asyncio.to_thread(preflight, server.start, server.model, own_key(server))).check()


async def _checked_files(
    input: Path,  # noqa: A002
    image_root: Path,
    output: Path,
    image_column: str,
    caption_column: str,
    shard: str,
    warn: Callable[[str], None],
) -> tuple[Source, Path, Workspace]:
    workspace = Workspace.at(output, shard)
    source = Source(input.expanduser(), image_column, caption_column, Shard.parse(shard) if shard else None)
    image_root = image_root.expanduser()
    check_paths(source, image_root, workspace)
    columns = await asyncio.to_thread(check_source, source)
    if replaced := [name for name in columns if name in replaced_columns(source)]:
        warn(f"the input's columns {', '.join(map(repr, replaced))} are replaced in the output by ours of these names")
    return source, image_root, workspace


def own_key(server: VLLMServer) -> str:
    """The key that a server of ours is to ask for; empty for none."""
    key = server.resolved_api_key()
    return "" if key == NO_KEY else key


def guard_recipe(workspace: Workspace, recipe: AnnotationRecipe, model: str) -> tuple[Family, dict[str, Any], str]:
    """The recipe's family, settings and fingerprint. Raises UsageError where the output was written with another."""
    family, settings = resolve_family(recipe.family, model), recipe_settings(recipe, model)
    identity = fingerprint(recipe, model)
    workspace.guard_recipe(settings, identity)
    return family, settings, identity


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
    if source.path.resolve() in workspace.outputs:
        raise UsageError(f"input and output are both {source.path.resolve()}: choose another --output")


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
