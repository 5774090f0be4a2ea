"""Runs the work of a command, with or without Prefect."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import job_of, refuse_blocks
from vllm_annotate.cli.work import FINISHED, Work, end

Result = TypeVar("Result")


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

    refuse_blocks(work.fields, "saved blocks need Prefect: drop --without-prefect")
    job = job_of(work.fields)
    with logging_to(console) as logger:
        task = annotate(job, logger) if work.kinds is None else retry(job, work.kinds, logger)
        report = run_to_the_end(task, interrupts)
    if report is None:  # there was nothing to retry
        return FINISHED
    console.say(sentence(report))
    return end(console, job, finished=report.is_complete)


@contextmanager
def logging_to(console: Console) -> Iterator[logging.Logger]:
    """The logger of a run, whose messages the console prints."""
    logger = logging.getLogger("vllm_annotate")
    handler = console.handler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)


def run_to_the_end(work: Coroutine[Any, Any, Result], interrupts: Interrupts) -> Result:
    """Runs the work in an event loop. Raises KeyboardInterrupt if a signal cancels it."""
    try:
        return interrupts.run(work)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
