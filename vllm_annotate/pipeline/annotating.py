"""Runs the chunks of an input file, each shortly before its rows are needed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from vllm_annotate.errors import ImageFailure, InputFault, ServerFault, UsageError
from vllm_annotate.inputs.plan import POLARS_ERRORS
from vllm_annotate.inputs.plan_file import Chunk, Plan
from vllm_annotate.pipeline.session import Run
from vllm_annotate.results.merge import Merge
from vllm_annotate.results.parts import Part, answers_path, pending_rows
from vllm_annotate.storage.disk_errors import stops_the_run
from vllm_annotate.threads import run_to_end

Logger = logging.Logger | logging.LoggerAdapter[Any]
ChunkRunner = Callable[[Chunk], Awaitable[BaseException | None]]  # returns what stopped a chunk
MakeRunner = Callable[[Run, Plan], ChunkRunner]  # for the chunks of an input file


@dataclass
class Fatal:
    """What stops every chunk of a run, once something does."""

    error: BaseException | None = None

    def raise_it(self) -> None:
        """Raises it, unless it is the server, after which the answers so far are merged."""
        if self.error is not None and not isinstance(self.error, ServerFault):
            raise self.error


async def start_chunks(
    run: Run, merge: Merge, run_chunk: ChunkRunner, group: asyncio.TaskGroup, fatal: Fatal
) -> list[asyncio.Task[None]]:
    """Starts the chunks of an input file in the group, each shortly before its rows are needed; returns their tasks."""
    annotator, is_alone = run.annotator, run.workspace.state is None

    def noted(error: BaseException) -> ImageFailure:
        stops_all = isinstance(error, UsageError) and (is_alone or not isinstance(error, InputFault))
        if stops_all:  # another run owns the output, or the plan is of another input
            annotator.stop(error)
        if stops_all or isinstance(error, ServerFault) or stops_the_run(error):
            fatal.error = fatal.error or error
        return ImageFailure("server" if isinstance(error, ServerFault) else "unasked", str(error) or repr(error))

    async def annotate(chunk: Chunk) -> None:
        error: BaseException | None
        try:
            error = fatal.error or await run_chunk(chunk)
        except (Exception, *POLARS_ERRORS) as failure:  # outside the chunk: the workspace or the plan
            error = failure
        finally:
            annotator.end_turn(answers_path(run.workspace, chunk))
        stopped = None if error is None else noted(error)
        if fatal.error is None:
            await run_to_end(merge.end_chunk, chunk, stopped)
        elif stopped is not None:
            merge.stopped[chunk.number] = stopped

    tasks = []
    for chunk in merge.plan.chunks:
        await annotator.turn(answers_path(run.workspace, chunk))
        tasks.append(group.create_task(annotate(chunk)))
    return tasks


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
            await run.annotator.annotate(rows, part, run.files.image_root)
        finally:
            await run_to_end(part.close)
    logger.info("%d images processed, %d failures in the chunk", len(rows), part.failed)
    return {"part": chunk.name, "images": chunk.length, "failed": part.failed}
