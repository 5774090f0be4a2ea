"""Shows progress: a live line on a terminal, else a log line every few seconds."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from vllm_annotate.pipeline.annotator import Annotator
from vllm_annotate.pipeline.work import Work

LIVE_SECONDS = 0.5
LOG_SECONDS = 10


@asynccontextmanager
async def showing_progress(
    annotator: Annotator, work: Work, logger: "logging.Logger | logging.LoggerAdapter[logging.Logger]"
) -> AsyncIterator[None]:
    """Shows the progress of the work until the context ends."""
    show = _live(annotator, work) if sys.stderr.isatty() else _logged(annotator, work, logger)
    showing = asyncio.create_task(show)
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)  # unlike suppress: lets cancellation through


async def _live(annotator: Annotator, work: Work) -> None:
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("", total=work.rows)
        while True:
            bar.update(
                line, total=work.rows, completed=annotator.tally.done, description=progress_line(annotator, work.rows)
            )
            await asyncio.sleep(LIVE_SECONDS)


async def _logged(
    annotator: Annotator, work: Work, logger: "logging.Logger | logging.LoggerAdapter[logging.Logger]"
) -> None:
    while True:
        await asyncio.sleep(LOG_SECONDS)
        logger.info("%s", progress_line(annotator, work.rows))


def progress_line(annotator: Annotator, total: int) -> str:
    """`120/500 images, 31.2/s, 0:00:12 left, 64 in flight, 2 failed`."""
    tally = annotator.tally
    rate = tally.images_per_second()
    left = str(timedelta(seconds=round((total - tally.done) / rate))) if rate else "?"
    done = f"{tally.done}/{total} images, {rate:.1f}/s, {left} left"
    return f"{done}, {annotator.in_flight} in flight, {tally.failed} failed"
