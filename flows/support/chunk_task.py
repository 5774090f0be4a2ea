"""Runs a chunk as a Prefect task: cached by its images and recipe, retried if its server goes down."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import Task

from vllm_annotate.errors import AnnotateError, ServerUnavailable
from vllm_annotate.inputs.plan_file import MOST_CHUNKS, Chunk, Plan
from vllm_annotate.pipeline import annotating
from vllm_annotate.pipeline.annotating import ChunkRunner, Logger, count_settled
from vllm_annotate.pipeline.session import CHUNK_RETRY_SECONDS, Run
from vllm_annotate.pipeline.without_prefect import run_chunk as run_without_task


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
        """Returns the key, with a prefix, as tasks with equal keys share entries."""
        return f"annotate-chunk-{inputs['recipe_fingerprint']}-{inputs['chunk'].digest}"


class ChunkTasks:
    """Runs the chunks of a run as tasks, the first MOST_CHUNKS of them; further ones the same way without a task."""

    def __init__(self, logger: Logger, most: int = MOST_CHUNKS) -> None:
        self._logger = logger
        self._left = most

    def of_input(self, run: Run, plan: Plan) -> ChunkRunner:
        """The runner of the chunks of an input file."""
        file = "" if run.workspace.state is None else f" of {run.files.name}"
        return partial(self._run, run, f" of {len(plan.chunks)}{file}")

    async def _run(self, run: Run, of: str, chunk: Chunk) -> BaseException | None:
        self._left -= 1
        if self._left >= 0:
            name = f"chunk {chunk.number}{of}".replace("{", "{{").replace("}", "}}")  # Prefect formats it
            return await run_chunk(run, name, chunk)
        if self._left == -1:
            self._logger.info("Prefect shows no further chunks: they run the same way")
        return await run_without_task(run, self._logger, chunk)


async def run_chunk(run: Run, name: str, chunk: Chunk) -> BaseException | None:
    """Runs one chunk as a task, or finds its cached result; returns what stopped it, or None."""
    pending = await count_settled(run, chunk)

    # A closure: the run's clients and semaphores belong to the flow's event loop, and Prefect visits, hashes and shows
    # the parameters of a task.
    @task(
        name="annotate_chunk",
        task_run_name=name,
        cache_policy=ByImagesAndRecipe(),
        refresh_cache=bool(pending),  # the part files of a cached result may be gone
        persist_result=True,
        result_serializer="json",
        result_storage=run.workspace.cache,
        retries=run.job.chunk_retries,
        retry_delay_seconds=CHUNK_RETRY_SECONDS,
        retry_condition_fn=may_heal,
        retry_jitter_factor=0.5,
    )
    async def annotate_chunk(chunk: Chunk, recipe_fingerprint: str) -> dict[str, Any]:  # noqa: ARG001 - in the key
        return await annotating.annotate_chunk(run, chunk, get_run_logger())

    state: State[Any] = await annotate_chunk(chunk, run.recipe_fingerprint, return_state=True)  # type: ignore[misc]
    if state.is_completed():
        return None
    error = await state.aresult(raise_on_failure=False)
    return error if isinstance(error, BaseException) else AnnotateError(state.message or str(state))


async def may_heal(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether retrying a chunk can help: only if its server was down."""
    return isinstance(await state.aresult(raise_on_failure=False), ServerUnavailable)


class ExpectedErrorsWithoutTraceback(logging.Filter):
    """Removes the tracebacks that Prefect logs for expected errors: the message is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps every record, some without traceback."""
        if record.exc_info and isinstance(record.exc_info[1], AnnotateError | OSError):
            record.exc_info = None
        return True


_SHORTENED = ExpectedErrorsWithoutTraceback()


def shorten_tracebacks() -> None:
    """Adds the filter to Prefect's logger of task runs, once."""
    logging.getLogger("prefect.task_runs").addFilter(_SHORTENED)
