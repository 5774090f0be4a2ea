"""Runs the work of a command, with or without Prefect."""

import asyncio
import logging

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import job_of, saved_blocks
from vllm_annotate.cli.work import FINISHED, Work, end
from vllm_annotate.errors import UsageError


def run_work(work: Work, console: Console, interrupts: Interrupts, *, without_prefect: bool) -> int:
    """Runs the work; returns the exit code."""
    if without_prefect:
        return run_without_prefect(work, console, interrupts)
    from vllm_annotate.cli.with_prefect import run_with_prefect

    return run_with_prefect(work, console, interrupts)


def run_without_prefect(work: Work, console: Console, interrupts: Interrupts) -> int:
    """Runs the work in this process; returns the exit code."""
    from vllm_annotate.pipeline.without_prefect import annotate, retry
    from vllm_annotate.report.summary import sentence

    if blocks := saved_blocks(work.fields):
        name, block = next(iter(blocks.items()))
        raise UsageError(f"--{name} {block!r} is not a file, and saved blocks need Prefect: drop --without-prefect")
    job = job_of(work.fields)
    logger = logging.getLogger("vllm_annotate")
    handler = console.handler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        task = annotate(job, logger) if work.kinds is None else retry(job, work.kinds, logger)
        report = interrupts.run(task)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        logger.removeHandler(handler)
    if report is None:  # there was nothing to retry
        return FINISHED
    console.say(sentence(report))
    return end(console, job, finished=not (report.images.failed or report.failed_chunks))
