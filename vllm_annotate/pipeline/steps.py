"""The steps of a run: plan → prove the servers → annotate chunks → merge → report."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from vllm_annotate.errors import ImageFailure, ServerFault, UsageError
from vllm_annotate.inputs.plan import POLARS_ERRORS, input_has_changed, keep_plan, remove_plan
from vllm_annotate.inputs.plan_file import Chunk, Plan
from vllm_annotate.pipeline.outcome import outcome
from vllm_annotate.pipeline.recording import Telemetry
from vllm_annotate.pipeline.report_page import last_charts
from vllm_annotate.pipeline.session import Run, plan_or_resume
from vllm_annotate.report.about import language_of
from vllm_annotate.report.figures import telemetry_charts
from vllm_annotate.report.page import write_page
from vllm_annotate.report.report import Report, write_report
from vllm_annotate.report.whole import with_last_run, with_whole
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.merged import Merged
from vllm_annotate.results.parts import Part, pending_rows
from vllm_annotate.storage.disk_errors import stops_the_run
from vllm_annotate.telemetry.bottleneck import UNIMPORTANT
from vllm_annotate.threads import run_to_end

Logger = logging.Logger | logging.LoggerAdapter[Any]
ChunkRunner = Callable[[Chunk], Awaitable[BaseException | None]]


async def plan_chunks(run: Run, logger: Logger) -> Plan:
    """Plans or resumes; returns the rows without an answer, cut into chunks."""
    plan = await run_to_end(plan_or_resume, run)
    counts = plan.counts
    logger.info(
        "%s: %d images in %d chunks; the output had %d of the input's %d distinct images when planned",
        "Resuming an unfinished plan" if plan.resumed else "New plan",
        plan.rows, len(plan.chunks), counts.already_done, counts.distinct,
    )  # fmt: skip
    if counts.taken:
        logger.info("%d of them have an answer of the pilot, %s", counts.taken, run.workspace.pilot.output)
    if size := plan.other_chunk_size(run.job.chunk_size):
        logger.info(
            "Chunks have %d images, not chunk_size=%d: a plan keeps its chunks until all are complete",
            size, run.job.chunk_size,
        )  # fmt: skip
    if counts.broken_in_output:
        logger.warning(
            "%d lines of %s are corrupt or have no image path (the first is line %d): they stay, and their images are "
            "annotated again",
            counts.broken_in_output, run.workspace.output, counts.first_broken,
        )  # fmt: skip
    if counts.malformed or counts.without_path or counts.duplicates:
        logger.warning(
            "Skipped lines of the input: %d malformed, %d without an image path, %d duplicates; see %s",
            counts.malformed, counts.without_path, counts.duplicates, run.workspace.skipped,
        )  # fmt: skip
    return plan


async def prove_servers(run: Run, plan: Plan, logger: Logger) -> None:
    """Proves every endpoint before the first image, if there is one. Raises ServerRefused if boxes would be wrong."""
    if plan.rows:
        await run.proving.prove_all(logger)


async def annotate_chunks(run: Run, plan: Plan, run_chunk: ChunkRunner) -> Merge:
    """Runs the chunks, each shortly before its rows are needed. `run_chunk` returns what stopped a chunk, or None.

    Returns the merge, which has the answers of finished chunks and knows which chunks stopped early. Once the server is
    gone or refuses, no further chunk starts. Raises OSError if the disk is full, UsageError if another run has taken
    over the output.
    """
    merge = Merge(run.workspace, plan, grows=run.files.output.grows, warn=run.files.warn)
    annotator = run.annotator
    fatal: BaseException | None = None  # would stop every other chunk too

    def noted(error: BaseException) -> ImageFailure:
        nonlocal fatal
        if isinstance(error, UsageError):  # another run owns the output, or the plan is of another input
            annotator.stop(error)
        if isinstance(error, ServerFault | UsageError) or stops_the_run(error):
            fatal = fatal or error
        return ImageFailure("server" if isinstance(error, ServerFault) else "unasked", str(error) or repr(error))

    async def annotate(chunk: Chunk) -> None:
        error: BaseException | None
        try:
            error = fatal or await run_chunk(chunk)
        except (Exception, *POLARS_ERRORS) as failure:  # outside the chunk: the workspace or the plan
            error = failure
        finally:
            annotator.end_turn(chunk)
        stopped = None if error is None else noted(error)
        if fatal is None:
            await run_to_end(merge.end_chunk, chunk, stopped)
        elif stopped is not None:
            merge.stopped[chunk.number] = stopped

    async with asyncio.TaskGroup() as group:
        for chunk in plan.chunks:
            await annotator.turn(chunk)
            group.create_task(annotate(chunk))
    if fatal is not None and not isinstance(fatal, ServerFault):
        raise fatal
    return merge


async def count_settled(run: Run, chunk: Chunk) -> int:
    """Counts the images of a chunk that an interrupted run settled; returns how many rows are left."""
    pending = await run_to_end(pending_rows, run.workspace, chunk, run.source)
    run.annotator.tally.settled_before += chunk.length - len(pending)
    return len(pending)


async def annotate_chunk(run: Run, chunk: Chunk, logger: Logger) -> dict[str, Any]:
    """Annotates the open rows of a chunk into its part files; returns part, images and failed.

    Raises ServerFault, ErrorBudgetExceeded and OSError; see `Annotator.annotate`.
    """
    rows = await run_to_end(pending_rows, run.workspace, chunk, run.source)
    async with run.files.keeping(chunk, run.annotator.stop):
        part = Part(run.workspace, chunk)
        try:
            await run.annotator.annotate(rows, part)
        finally:
            await run_to_end(part.close)
    logger.info("%d images processed, %d failures in the chunk", len(rows), part.failed)
    return {"part": chunk.name, "images": chunk.length, "failed": part.failed}


async def merge_parts(run: Run, merge: Merge, logger: Logger) -> Merged:
    """Moves the last answers into the output and writes the failures file; removes the plan if nothing stopped."""
    workspace = run.workspace
    merged = await run_to_end(merge.finish)
    if input_has_changed(workspace, run.source):
        logger.warning("%s has changed since this run planned it: run again to annotate the changes", run.source.given)
    if merge.stopped:
        keep_plan(workspace, run.source, merge.plan)
    else:
        remove_plan(workspace)
    return merged


async def publish_report(
    run: Run, plan: Plan, merged: Merged, telemetry: Telemetry, stopped: list[int], seconds: float, logger: Logger
) -> Report:
    """Writes report.json and report.html, and publishes the run's files; returns the report."""
    failed_chunks = [f"chunk {number} of {len(plan.chunks)}" for number in stopped]
    report = outcome(run, plan, merged, telemetry, seconds=seconds, failed_chunks=failed_chunks)
    if not plan.rows and not merged.answered:
        report = await run_to_end(with_last_run, report, run.workspace)
    report = await run_to_end(with_whole, report, run.workspace)
    write_report(run.workspace.report, report)
    try:
        idle, language = report.last_run is not None, language_of(report)
        charts = last_charts(run.workspace, report) if idle else telemetry_charts(telemetry, language)
        await run_to_end(write_page, run.workspace, run.files.image_root, report, charts)
    except Exception as error:  # the output is complete: a missing page must not fail the run
        logger.warning("Could not write report.html: %r", error)
    await run.files.publish()
    if (verdict := telemetry.bottleneck.verdict()).kind not in UNIMPORTANT:
        logger.info("Bottleneck: %s (%s). What to do: %s", verdict.title, verdict.evidence, verdict.advice)
    return report
