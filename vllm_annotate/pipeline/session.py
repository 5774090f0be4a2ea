"""What one run shares, opened in the order in which it can go wrong: paths, server, lock, recipe."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vllm_annotate.errors import UsageError
from vllm_annotate.inference.client import Inference
from vllm_annotate.inputs.plan import POLARS_ERRORS, make_plan, open_plan, plan_is_for, remove_plan
from vllm_annotate.inputs.plan_file import Plan
from vllm_annotate.inputs.source import Source
from vllm_annotate.job import Job
from vllm_annotate.pipeline.annotator import Annotator
from vllm_annotate.pipeline.files import RunFiles, is_image_file, run_files
from vllm_annotate.recipe.families import Family, resolve_family
from vllm_annotate.recipe.fingerprint import fingerprint, recipe_settings
from vllm_annotate.recipe.guard import guard_recipe, record_recipe
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.results.merge import settle
from vllm_annotate.results.provenance import makers_in
from vllm_annotate.serving.keeper import Keeper, kept_servers, watching
from vllm_annotate.serving.preflight import preflight
from vllm_annotate.serving.settings import Server
from vllm_annotate.storage.locations import ImageRoot
from vllm_annotate.storage.workspace import Workspace

SAMPLED_PATHS, FEWEST_PATHS = 100, 10
CHUNK_RETRY_SECONDS = [10.0, 60.0]
YOUNG_OBJECTS = 5_000  # more than before, between two passes of the garbage collector


@dataclass(frozen=True)
class Run:
    """A run whose server answers, whose paths are good, and which alone writes its output."""

    job: Job
    files: RunFiles
    model: str
    recipe_settings: dict[str, Any]
    recipe_fingerprint: str
    versions: dict[str, dict[str, Any]]  # endpoint → what its /version says
    annotator: Annotator
    keepers: Sequence[Keeper] = ()  # of the servers that are started for the run

    @property
    def workspace(self) -> Workspace:
        """The files of the run, on this machine."""
        return self.files.workspace

    @property
    def source(self) -> Source:
        """The input."""
        return self.files.source


@asynccontextmanager
async def open_run(
    job: Job, say: Callable[[str], None] = lambda _: None, warn: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Run]:
    """A run, for as long as the context lasts. Raises UsageError or ServerFault before anything is written."""
    server, recipe = job.server or Server(), job.recipe or Recipe()
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(run_files(job, say, warn))
        workspace = files.workspace
        keepers: list[Keeper] = []
        if server.start is not None:
            found = await asyncio.to_thread(preflight, server.start, server.model, server.own_key())
            found.check()
            for note in found.notes:
                say(note)
            # Before the start, which takes minutes: nothing that can be refused should wait for it.
            stack.enter_context(workspace.locked())
            checked_recipe(workspace, recipe, found.model_name)
            folder = Path(server.start.log_folder or workspace.logs).expanduser().resolve()
            keepers = await stack.enter_async_context(kept_servers(found.replicas, folder, say))
        client = inference_client(server, job, warn)
        inference = await stack.enter_async_context(client)
        await stack.enter_async_context(watching(keepers, inference.pool))
        model = await inference.check(server.expected_model())
        versions = await inference.versions(model)
        if server.start is None:
            stack.enter_context(workspace.locked())
        family, settings, identity = checked_recipe(workspace, recipe, model)
        if others := other_recipes(workspace, identity):
            warn(
                f"{workspace.recipe} is gone, and {workspace.report} names recipes ({', '.join(others)}) other than "
                f"this run's {identity}: its answers are added to theirs"
            )
        reads = can_read(server, keepers, files.image_root)
        annotator = Annotator(inference, recipe, family, model, files.image_root, job.error_budget, servers_read=reads)
        await stack.enter_async_context(annotator)
        stack.enter_context(rare_collections())
        yield Run(job, files, model, settings, identity, versions, annotator, keepers)


def inference_client(server: Server, job: Job, warn: Callable[[str], None]) -> Inference:
    """The client of a server's endpoints, with the job's limits."""
    return Inference(
        server.urls(),
        server.resolved_api_key(),
        max_concurrency=job.max_concurrency,
        request_timeout_seconds=job.request_timeout_seconds,
        server_wait_seconds=job.server_wait_seconds,
        warn=warn,
    )


@contextmanager
def rare_collections() -> Iterator[None]:
    """Fewer passes of the garbage collector, and none over what is there already: 7 % of a run's processor time."""
    if gc.get_freeze_count():  # by another run in this process, or by whoever embeds it
        yield
        return
    thresholds = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *thresholds[1:])
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


async def check_run(job: Job, say: Callable[[str], None]) -> None:
    """Raises what `open_run` would for this job, as far as it can be known without starting a server."""
    server = job.server
    if server is None or server.start is None:
        async with open_run(job, say):
            return
    async with run_files(job, say, lambda _: None):
        (await asyncio.to_thread(preflight, server.start, server.model, server.own_key())).check()


def can_read(server: Server, keepers: Sequence[Keeper], image_root: ImageRoot) -> bool:
    """Whether all servers read files of the image root themselves: they are ours, here, and were started so."""
    if server.start is None or server.start.allowed_media_folder is None or not isinstance(image_root, Path):
        return False
    allowed = Path(server.start.allowed_media_folder)
    ours = len(keepers) == len(server.urls()) and all(keeper.is_ours for keeper in keepers)
    # vLLM compares real paths with the folder as it was written.
    return ours and allowed == allowed.resolve() and image_root.resolve().is_relative_to(allowed)


def checked_recipe(workspace: Workspace, recipe: Recipe, model: str) -> tuple[Family, dict[str, Any], str]:
    """The recipe's family, settings and fingerprint. Raises UsageError where the output was written with another."""
    family, settings = resolve_family(recipe.family, model), recipe_settings(recipe, model)
    identity = fingerprint(recipe, model)
    guard_recipe(workspace, settings, identity)
    return family, settings, identity


def other_recipes(workspace: Workspace, identity: str) -> list[str]:
    """Recipes that an output was made with, by its report, where nothing else tells any more."""
    if workspace.recipe.exists() or not workspace.output.exists():
        return []
    return sorted({entry["recipe"] for entry in makers_in(workspace.report)} - {identity})


def plan_or_resume(run: Run) -> Plan:
    """The plan in progress if nobody has edited its input or output; else a new one, once the old one is settled.

    Raises UsageError where the input turns out to be broken.
    """
    workspace = run.workspace
    try:
        plan = open_plan(workspace)
        if plan is None or not plan_is_for(workspace, run.source):
            settle(workspace, plan)
            remove_plan(workspace)
            plan = make_plan(run.source, workspace, run.job.chunk_size)
            _check_image_root(run, plan)
    except POLARS_ERRORS as error:
        raise _unreadable(run, error) from None
    except OSError as error:
        if error.errno is not None:  # the disk's, not the decompressor's
            raise
        raise _unreadable(run, error) from None
    record_recipe(workspace, run.recipe_settings, run.recipe_fingerprint)
    if run.source.path != workspace.retried:  # a retry is no job of its own
        run.job.remember(workspace.job)
    return plan


def _check_image_root(run: Run, plan: Plan) -> None:
    """Raises UsageError where a new job's images are nowhere: the root is wrong, and not each of a million files."""
    if plan.counts.already_done:
        return
    stride = max(1, plan.rows // SAMPLED_PATHS)
    paths = pl.scan_parquet(run.workspace.plan_rows, glob=False).select("image_path").gather_every(stride).collect()
    sample = paths["image_path"].to_list()
    if len(sample) >= FEWEST_PATHS and not any(is_image_file(run.files.image_root, path) for path in sample):
        remove_plan(run.workspace)
        raise UsageError(
            f"none of {len(sample)} sampled images is a file under {run.files.image_root}, the first would be "
            f"{run.files.image_root}/{sample[0]}: set image_root to the folder that the paths are relative to"
        )


def _unreadable(run: Run, error: BaseException) -> UsageError:
    files = f"{run.source.path} or {run.workspace.output}"
    return UsageError(f"{files} is truncated or corrupt; restore it: {error!s:.300}")
