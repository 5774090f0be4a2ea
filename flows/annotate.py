"""The flow: check the server → plan → annotate chunks → merge → report. The story of a run; the work is elsewhere."""

import signal
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command line handles it, it would end in a traceback

    # Ahead of the imports below: the command line settles Prefect's environment first, and imports this module under
    # its own name, where deployments and pickles look for the flow.
    from vllm_annotate.cli.annotate import main

    sys.exit(main())

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.states import Completed, Failed
from prefect.tasks import Task
from pydantic import Field

from blocks import AnnotationRecipe, VLLMServer
from flows.support.artifacts import Artifacts, live_artifacts
from flows.support.termination import ended_by_sigterm
from vllm_annotate.errors import AnnotateError, ImageFailure, ServerFault, ServerUnavailable, UsageError
from vllm_annotate.inputs.plan import POLARS_ERRORS, Chunk, Plan, input_has_changed, keep_plan, remove_plan
from vllm_annotate.pipeline.progress import showing_progress
from vllm_annotate.pipeline.recording import recording
from vllm_annotate.pipeline.session import current_plan, current_run, open_run, set_current_run
from vllm_annotate.report.figures import telemetry_charts
from vllm_annotate.report.page import write_page
from vllm_annotate.report.summary import sentence, summarise
from vllm_annotate.results.merge import Merged, merge
from vllm_annotate.results.parts import Part, pending_rows
from vllm_annotate.storage.atomic import disk_is_full, explained, write_json
from vllm_annotate.storage.locations import Location, name_of
from vllm_annotate.telemetry.bottleneck import UNIMPORTANT
from vllm_annotate.threads import run_to_end

CHUNK_RETRY_SECONDS = [10.0, 60.0]


class ExpectedErrorsWithoutTraceback(logging.Filter):
    """Prefect logs a failed task with its traceback; for an error of ours, or of the disk, its message is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps every record, some of them shortened."""
        if record.exc_info and isinstance(record.exc_info[1], AnnotateError | OSError):
            record.exc_info = None
        return True


logging.getLogger("prefect.task_runs").addFilter(ExpectedErrorsWithoutTraceback())


@dataclass
class ByImagesAndRecipe(CachePolicy):
    """A chunk's cache key: the digest of its image paths, and the recipe's fingerprint."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,  # noqa: ARG002
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **_: Any,
    ) -> str:
        """Prefixed, because tasks with equal keys would share entries."""
        return f"annotate-chunk-{inputs['recipe_fingerprint']}-{inputs['chunk'].digest}"


def flow_run_name() -> str:
    """Tells in a list of runs what each writes."""
    return f"annotate {name_of(runtime.flow_run.parameters['output'])}"


@flow(name="annotate-images", flow_run_name=flow_run_name, persist_result=False)
async def annotate_images(
    input: Location,  # noqa: A002 - the command line's --input
    image_root: Location,
    output: Location,
    server: VLLMServer | None = None,
    recipe: AnnotationRecipe | None = None,
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto",
    chunk_size: Annotated[int, Field(ge=1, le=100_000)] = 500,
    image_column: Annotated[str, Field(min_length=1)] = "image_path",
    caption_column: str = "caption",
    shard: str = "",
    error_budget: Annotated[float, Field(ge=0, le=1)] = 0.5,
    server_wait_seconds: Annotated[float, Field(ge=0)] = 300,
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 600,
    chunk_retries: Annotated[int, Field(ge=0, le=10)] = 1,
) -> State[Any]:
    """Annotates every image of a JSONL or Parquet file with a rationale and named boxes; goes on where it stopped.

    Args:
        input: The images: a .jsonl (also .gz, .zst) or .parquet file with an image path and a caption a row. Like
            the next two a path, or a URL such as s3://bucket/captions.jsonl.
        image_root: The folder that image paths are relative to; nothing outside it is read.
        output: The result, a .jsonl file; images it already holds are not asked again.
        server: Where vLLM answers, or how to start it; empty takes http://localhost:8000/v1 and the model it serves.
        recipe: Prompts, sampling, schema and image budget; empty takes the built-in one.
        max_concurrency: Most requests in flight; "auto" finds what each server can use, and follows it.
        chunk_size: Images a chunk; a chunk is one task run.
        image_column: The input column that holds the image path.
        caption_column: The input column that holds the caption; empty when there are none.
        shard: Which share of the input to do, such as 3/16; empty for all of it. Its answers wait to be merged.
        error_budget: Share of a chunk's images that may fail before the chunk is stopped.
        server_wait_seconds: How long requests wait for a server that went away and that nobody here starts again.
        request_timeout_seconds: How long one request may take.
        chunk_retries: How often a chunk that lost its server is tried again.

    """
    logger = get_run_logger()
    started = time.monotonic()
    opening = open_run(
        input=input,
        image_root=image_root,
        output=output,
        server=server,
        recipe=recipe,
        max_concurrency=max_concurrency,
        image_column=image_column,
        caption_column=caption_column,
        shard=shard,
        error_budget=error_budget,
        server_wait_seconds=server_wait_seconds,
        request_timeout_seconds=request_timeout_seconds,
        say=logger.info,
        warn=logger.warning,
    )
    try:
        async with ended_by_sigterm(), opening as run:
            set_current_run(run)
            logger.info("Model %s at %s, recipe %s", run.model, ", ".join(run.versions), run.recipe_fingerprint)
            plan = await plan_chunks(chunk_size)
            async with (
                recording(run, plan.rows, logger.warning) as telemetry,
                live_artifacts(run, plan, telemetry, logger.warning) as artifacts,
                showing_progress(run.annotator, plan.rows, logger),
            ):
                stopped = await annotate_chunks(plan, chunk_retries)
            merged = await merge_parts(plan, stopped)
            summary = await publish_report(plan, merged, artifacts, sorted(stopped), time.monotonic() - started)
    except (UsageError, ServerFault) as error:
        logger.error("%s", error)  # noqa: TRY400 - the message says it all
        return Failed(message=str(error), data=error)
    except OSError as error:
        message = explained(error, output)
        logger.error("%s", message)  # noqa: TRY400
        return Failed(message=message, data=error)
    if stopped:
        return Failed(message=sentence(summary))
    return Completed(message=sentence(summary), data=summary)


@task(cache_policy=NO_CACHE, task_run_name="plan")
async def plan_chunks(chunk_size: int) -> Plan:
    """Rows without an answer, cut into chunks."""
    run = current_run()
    plan = await run_to_end(current_plan, run, chunk_size)
    logger = get_run_logger()
    counts = plan.counts
    begun = "Going on with a plan that was not finished" if plan.resumed else "New plan"
    logger.info(
        "%s: %d images in %d chunks; the output had %d of the input's %d distinct images when it was made",
        begun, plan.rows, len(plan.chunks), counts.already_done, counts.distinct,
    )  # fmt: skip
    if counts.broken_in_output:
        logger.warning(
            "%d lines of %s are torn or hold no image path (the first is line %d): they stay, and their images are "
            "asked again",
            counts.broken_in_output, run.workspace.output, counts.first_broken,
        )  # fmt: skip
    if counts.malformed or counts.without_path or counts.duplicates:
        logger.warning(
            "Skipped lines of the input: %d malformed, %d without an image path, %d duplicates; see %s",
            counts.malformed, counts.without_path, counts.duplicates, run.workspace.skipped,
        )  # fmt: skip
    return plan


async def annotate_chunks(plan: Plan, retries: int) -> dict[int, ImageFailure]:
    """Runs the chunks, each as soon as its rows are about to be needed.

    Returns the chunks (by number) that did not come to their end, with what their open images fail with. Once the
    server is gone or refuses, no further chunk starts. Raises what ends all of them: OSError where the disk takes no
    more answers, UsageError where the output has become another run's.
    """
    stopped: dict[int, ImageFailure] = {}
    annotator = current_run().annotator
    of_all: BaseException | None = None  # what no other chunk will escape either

    async def annotate(chunk: Chunk) -> None:
        nonlocal of_all
        error: BaseException | None
        try:
            error = of_all or await run_chunk(chunk, len(plan.chunks), retries)
        except (Exception, *POLARS_ERRORS) as failure:  # outside the chunk's task: the workspace's disk, its plan
            error = failure
        finally:
            annotator.end_turn(chunk)
        if isinstance(error, UsageError):  # the output is another run's by now, or the plan is not of this input
            annotator.stop(error)
        if isinstance(error, ServerFault | UsageError) or disk_is_full(error):
            of_all = of_all or error
        if error is not None:
            kind = "server" if isinstance(error, ServerFault) else "unasked"
            stopped[chunk.number] = ImageFailure(kind, str(error) or repr(error))

    async with asyncio.TaskGroup() as group:
        for chunk in plan.chunks:
            await annotator.turn(chunk)
            group.create_task(annotate(chunk))
    if of_all is not None and not isinstance(of_all, ServerFault):
        raise of_all
    return stopped


async def run_chunk(chunk: Chunk, chunks: int, retries: int) -> BaseException | None:
    """Runs or recalls one chunk; returns what stopped it, if anything did."""
    run = current_run()
    pending = await run_to_end(pending_rows, run.workspace, chunk, run.source)
    run.annotator.tally.settled_before += chunk.length - len(pending)
    configured = annotate_chunk.with_options(
        task_run_name=f"chunk {chunk.number} of {chunks}",
        refresh_cache=bool(pending),  # a cached result speaks of part files or output rows that may be gone by now
        result_storage=run.workspace.cache,
        retries=retries,
        retry_delay_seconds=CHUNK_RETRY_SECONDS,
    )
    state: State[Any] = await configured(chunk, run.recipe_fingerprint, return_state=True)  # type: ignore[misc]
    if state.is_completed():
        return None
    error = await state.aresult(raise_on_failure=False)
    return error if isinstance(error, BaseException) else AnnotateError(state.message or str(state))


async def may_heal(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether another try of a chunk can do better: only a server may come back."""
    return isinstance(await state.aresult(raise_on_failure=False), ServerUnavailable)


@task(
    cache_policy=ByImagesAndRecipe(),
    persist_result=True,
    result_serializer="json",
    retry_condition_fn=may_heal,
    retry_jitter_factor=0.5,
)
async def annotate_chunk(chunk: Chunk, recipe_fingerprint: str) -> dict[str, Any]:  # noqa: ARG001 - in the cache key
    """Annotates what is open of a chunk into its part files; the result names them."""
    run = current_run()
    rows = await run_to_end(pending_rows, run.workspace, chunk, run.source)
    part = Part(run.workspace, chunk)
    try:
        await run.annotator.annotate(rows, part)
    finally:
        await run_to_end(part.close)
        await run.files.keep(chunk)
    get_run_logger().info("%d images asked, %d of the chunk failed", len(rows), part.failed)
    return {"part": chunk.name, "images": chunk.length, "failed": part.failed}


@task(cache_policy=NO_CACHE, task_run_name="merge")
async def merge_parts(plan: Plan, stopped: dict[int, ImageFailure]) -> Merged:
    """Moves answers into the output and writes the failures file; a plan whose chunks are all complete is done with."""
    run = current_run()
    workspace = run.workspace
    merged = await run_to_end(merge, workspace, plan, stopped)
    if input_has_changed(workspace, run.source):
        get_run_logger().warning("%s has changed since this run planned it: run again for the rest", run.source.path)
    if stopped:
        keep_plan(workspace, run.source, plan)
    else:
        remove_plan(workspace)
    return merged


@task(cache_policy=NO_CACHE, task_run_name="report")
async def publish_report(
    plan: Plan, merged: Merged, artifacts: Artifacts, stopped: list[int], seconds: float
) -> dict[str, Any]:
    """Writes report.json and report.html, and what the artifacts say from now on; returns the report."""
    run, telemetry = current_run(), artifacts.telemetry
    failed_chunks = [f"chunk {number} of {len(plan.chunks)}" for number in stopped]
    summary = summarise(run, plan, merged, telemetry, seconds=seconds, failed_chunks=failed_chunks)
    write_json(run.workspace.report, summary)
    charts = telemetry_charts(telemetry)
    try:
        await run_to_end(write_page, run.workspace, run.files.image_root, summary, charts)
    except Exception as error:  # every answer is in the output by now: no page is worth a failed run
        get_run_logger().warning("report.html could not be written: %r", error)
    await run.files.publish()
    await artifacts.finish(summary, charts, sentence(summary))
    get_run_logger().info("%s", sentence(summary))
    if (verdict := telemetry.bottleneck.verdict()).kind not in UNIMPORTANT:
        get_run_logger().info("What held the run back: %s (%s). %s", verdict.title, verdict.evidence, verdict.advice)
    return summary
