"""Runs a job without Prefect: no server and no history, for Slurm arrays and home folders on NFS."""

import asyncio
import random
import time
from collections.abc import Sequence
from functools import partial

from vllm_annotate.errors import ServerUnavailable
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.job import Job
from vllm_annotate.pipeline.annotating import Logger, annotate_chunk, count_settled
from vllm_annotate.pipeline.progress import showing_progress
from vllm_annotate.pipeline.recording import recording
from vllm_annotate.pipeline.retrying import retried_input
from vllm_annotate.pipeline.session import CHUNK_RETRY_SECONDS, Run, open_run
from vllm_annotate.pipeline.steps import plan, prove_servers, publish_report
from vllm_annotate.report.report import Report
from vllm_annotate.results.retry import chosen_failures, counted, nothing_to_retry
from vllm_annotate.threads import run_to_end


async def annotate(job: Job, logger: Logger) -> Report:
    """Runs a job; returns its report. Raises UsageError, ServerFault and OSError."""
    started = time.monotonic()
    async with open_run(job, logger.info, logger.warning) as run:
        logger.info("Model %s at %s, recipe %s", run.model, ", ".join(run.versions), run.recipe_fingerprint)
        work = await plan(run, logger)
        await prove_servers(run, work, logger)
        async with recording(run, work, logger.warning) as telemetry, showing_progress(run.annotator, work, logger):
            await work.annotate(lambda run, _: partial(run_chunk, run, logger))
        merged = await work.finish(logger)
        return await publish_report(run, work, merged, telemetry, time.monotonic() - started, logger)


async def retry(job: Job, kinds: Sequence[str], logger: Logger) -> Report | None:
    """Retries failures of these kinds, or all; returns the report, or None if there is nothing to retry."""
    workspace, chosen, others = await run_to_end(chosen_failures, job.output, kinds)
    if not chosen:
        logger.info("%s", nothing_to_retry(others, workspace))
        return None
    logger.info("Retrying %s; not retrying %s", counted(chosen), counted(others) or "none")
    return await annotate(job.model_copy(update=retried_input(job.output, workspace)), logger)


async def run_chunk(run: Run, logger: Logger, chunk: Chunk) -> BaseException | None:
    """Annotates a chunk and retries it if its server goes away; returns what stopped it."""
    await count_settled(run, chunk)
    for tries_left in reversed(range(run.job.chunk_retries + 1)):
        try:
            await annotate_chunk(run, chunk, logger)
        except ServerUnavailable as error:
            if not tries_left:
                return error
            pause = CHUNK_RETRY_SECONDS[min(run.job.chunk_retries - tries_left, len(CHUNK_RETRY_SECONDS) - 1)]
            logger.warning("Chunk %d lost its server (%s); retrying in %d s", chunk.number, error, pause)
            await asyncio.sleep(pause * random.uniform(1, 1.5))
        except Exception as error:  # the boundary of a chunk: recorded, and other chunks continue
            return error
        else:
            return None
    return None
