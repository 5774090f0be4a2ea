"""Opens a run, cheapest checks first: paths, server, lock, recipe."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vllm_annotate.errors import MachineFault, UsageError
from vllm_annotate.images.files import check_root
from vllm_annotate.inference.client import Inference
from vllm_annotate.inputs.plan import POLARS_ERRORS, make_plan, open_plan, plan_is_for, plan_with_taken, remove_plan
from vllm_annotate.inputs.plan_file import Plan
from vllm_annotate.inputs.source import Source
from vllm_annotate.job import Job, images_known
from vllm_annotate.pipeline.annotator import Annotator
from vllm_annotate.pipeline.files import RunFiles, is_image_file, run_files
from vllm_annotate.pipeline.proving import Proving, with_family
from vllm_annotate.proof.prove import Prover
from vllm_annotate.recipe.families import Family, names_family, resolve_family
from vllm_annotate.recipe.fingerprint import fingerprint, recipe_settings
from vllm_annotate.recipe.guard import guard_recipe, record_recipe
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.results.append import repair_output
from vllm_annotate.results.asked_failures import put_back_asked
from vllm_annotate.results.merge import settle
from vllm_annotate.results.numbers import check_numbers
from vllm_annotate.results.pilot import take_pilot
from vllm_annotate.results.provenance import makers_in
from vllm_annotate.serving.keeper import Keeper, kept_servers, watching
from vllm_annotate.serving.preflight import Preflight, preflight
from vllm_annotate.serving.settings import Server
from vllm_annotate.storage.shortage import most_connections, raise_limit
from vllm_annotate.storage.workspace import Workspace

SAMPLED_PATHS, FEWEST_PATHS = 100, 10
CHUNK_RETRY_SECONDS = [10.0, 60.0]
YOUNG_OBJECTS = 5_000  # new objects between two garbage collections


@dataclass(frozen=True)
class Run:
    """An open run: its server answers, its paths are valid, and its output is locked."""

    job: Job
    files: RunFiles
    model: str
    recipe_settings: dict[str, Any]
    recipe_fingerprint: str
    versions: dict[str, dict[str, Any]]  # by endpoint
    annotator: Annotator
    proving: Proving
    keepers: Sequence[Keeper] = ()  # of the servers that the run starts

    @property
    def workspace(self) -> Workspace:
        """The files of the run, on this machine."""
        return self.files.workspace

    @property
    def source(self) -> Source:
        """The input file."""
        assert self.files.source is not None  # noqa: S101 - a run over several has none
        return self.files.source


@asynccontextmanager
async def open_run(
    job: Job, say: Callable[[str], None] = lambda _: None, warn: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Run]:
    """Opens a run. Raises UsageError or ServerFault before it writes anything."""
    server, recipe = job.server or Server(), job.recipe or Recipe()
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(run_files(job, say, warn))
        workspace = files.workspace
        keepers: list[Keeper] = []
        if server.start is not None:
            found = await asyncio.to_thread(find_launch, server, recipe)
            found.check()
            for note in found.notes:
                say(note)
            # Check what can be refused before the server starts, which takes minutes.
            stack.enter_context(workspace.locked())
            if names_family(recipe.family, found.model_name):
                checked_recipe(workspace, recipe, found.model_name)
            folder = Path(os.path.realpath(Path(server.start.log_folder or workspace.logs).expanduser()))
            keepers = await stack.enter_async_context(kept_servers(found.replicas, folder, say))
        client = inference_client(server, job, warn)
        inference = await stack.enter_async_context(client)
        await stack.enter_async_context(watching(keepers, inference.pool))
        model = await inference.check(server.expected_model())
        versions = await inference.versions(model)
        if server.start is None:
            stack.enter_context(workspace.locked())
        recipe = await with_family(recipe, model, workspace, inference.pool, say)
        family, settings, identity = checked_recipe(workspace, recipe, model)
        if others := other_recipes(workspace, identity):
            warn(
                f"{workspace.recipe} is missing, and {workspace.report} lists other recipes ({', '.join(others)}) than "
                f"this run's {identity}: the output will hold answers of all of them"
            )
        annotator = Annotator(inference, recipe, family, model, job.error_budget, is_remote=files.is_remote)
        await stack.enter_async_context(annotator)
        stack.enter_context(rare_collections())
        prover = Prover(recipe, family, model, patience_seconds=job.server_wait_seconds)
        proving = Proving(prover, inference, annotator, job.canary_every)
        stack.push_async_callback(proving.close)
        yield Run(job, files, model, settings, identity, versions, annotator, proving, keepers)


def find_launch(server: Server, recipe: Recipe) -> Preflight:
    """Checks what decides whether the servers will start; they see images of the recipe's budget."""
    start = server.start
    assert start is not None  # noqa: S101 - for the type checker
    budget = recipe.servers_budget(start.served_name(server.model))
    return preflight(start, server.model, server.own_key(), budget=budget)


def inference_client(server: Server, job: Job, warn: Callable[[str], None]) -> Inference:
    """The client of a server's endpoints, with the job's limits."""
    files, wanted = raise_limit(), job.max_concurrency
    return Inference(
        server.urls(),
        server.resolved_api_key(),
        max_concurrency=wanted if wanted == "auto" else allowed_concurrency(wanted, files, warn),
        most_connections=most_connections(files),
        request_timeout_seconds=job.request_timeout_seconds,
        server_wait_seconds=job.server_wait_seconds,
        warn=warn,
    )


def allowed_concurrency(wanted: int, open_files: int, warn: Callable[[str], None]) -> int:
    """The requests in flight that this process's limit of open files allows: each has a connection of its own."""
    most = most_connections(open_files)
    if wanted > most:
        warn(
            f"max_concurrency is {most}, not {wanted}: this process may open {open_files} files, and each request "
            "needs one; raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd)"
        )
    return min(wanted, most)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collects garbage less often, and not among existing objects: saves 7 % of a run's CPU time."""
    if gc.get_freeze_count():  # by another run in this process, or by its host program
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
    """Raises what `open_run` would raise, as far as can be checked without starting a server."""
    server = job.server
    if server is None or server.start is None:
        async with open_run(job, say):
            return
    async with run_files(job, say, lambda _: None):
        (await asyncio.to_thread(find_launch, server, job.recipe or Recipe())).check()


def checked_recipe(workspace: Workspace, recipe: Recipe, model: str) -> tuple[Family, dict[str, Any], str]:
    """The recipe's family, settings and fingerprint. Raises UsageError if the output has another recipe."""
    family, settings = resolve_family(recipe.family, model), recipe_settings(recipe, model)
    identity = fingerprint(recipe, model)
    guard_recipe(workspace, settings, identity)
    return family, settings, identity


def other_recipes(workspace: Workspace, identity: str) -> list[str]:
    """Other recipes of an output, from its report, if its recipe file is missing."""
    if workspace.recipe.exists() or not workspace.output.exists():
        return []
    return sorted({entry["recipe"] for entry in makers_in(workspace.report)} - {identity})


def plan_or_resume(run: Run) -> Plan:
    """The plan in progress if its input and output are unchanged; else settles it and makes a new one.

    Raises UsageError if the input is corrupt.
    """
    workspace = run.workspace
    check_numbers(workspace, run.files.image_root)
    try:
        repair_output(workspace)
        put_back_asked(workspace)
        plan = open_plan(workspace)
        if plan is None or not plan_is_for(workspace, run.source):
            settle(workspace, plan)
            remove_plan(workspace)
            plan = make_plan(run.source, workspace, run.job.chunk_size)
            if run.source.origin is None:
                _check_image_root(run, plan)
            images = images_known(run.job.without_secrets())
            if taken := take_pilot(workspace, plan, run.source, images, run.recipe_fingerprint):
                plan = plan_with_taken(workspace, run.source, plan, taken)
        if plan.rows:
            check_root(run.files.image_root)
    except POLARS_ERRORS as error:
        raise _unreadable(run, error) from None
    except OSError as error:
        if error.errno is not None or isinstance(error, MachineFault):  # not from the decompressor
            raise
        raise _unreadable(run, error) from None
    if workspace.state is None:
        record_run(run, images_are_inside=run.source.origin is not None)
    return plan


def record_run(run: Run, *, images_are_inside: bool) -> None:
    """Records the recipe and the job of a run, before its first answer."""
    record_recipe(run.workspace, run.recipe_settings, run.recipe_fingerprint)
    if run.job.input == run.workspace.retried:  # a retry is not a new job
        return
    used = run.job.model_copy(update={"image_root": None}) if images_are_inside else run.job
    used.remember(run.workspace.job)


def _check_image_root(run: Run, plan: Plan) -> None:
    """Raises UsageError if a new job's sampled images are all missing: the root must be wrong."""
    if plan.counts.already_done:
        return
    stride = max(1, plan.rows // SAMPLED_PATHS)
    paths = pl.scan_parquet(run.workspace.plan_rows, glob=False).select("image_path").gather_every(stride).collect()
    sample = paths["image_path"].to_list()
    if len(sample) >= FEWEST_PATHS and not any(is_image_file(run.files.image_root, path) for path in sample):
        remove_plan(run.workspace)
        raise UsageError(
            f"none of {len(sample)} sampled images exists under {run.files.image_root}, for example "
            f"{run.files.image_root}/{sample[0]}: set image_root to the folder that image paths are relative to"
        )


def _unreadable(run: Run, error: BaseException) -> UsageError:
    files = [str(run.source.given), *(str(path) for path in run.workspace.outputs if path.exists())]
    return UsageError(f"{' or '.join(files)} is truncated or corrupt ({error!s:.300}): restore it")
