"""The flow that asks again what has no answer: all of the failures file, or only some kinds of failure."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from blocks import AnnotationRecipe, VLLMServer
from flows.annotate import annotate_images
from vllm_annotate.errors import UsageError
from vllm_annotate.results.mirror import opened
from vllm_annotate.storage.atomic import explained, replacing
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.locations import Location, name_of
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.threads import run_to_end

FailureKind = Literal[
    "missing", "unreadable", "outside_root", "too_large", "rejected", "truncated", "timeout", "server", "unasked"
]


def flow_run_name() -> str:
    """Tells in a list of runs whose failures are asked again."""
    return f"retry failures of {name_of(runtime.flow_run.parameters['output'])}"


@flow(name="retry-failures", flow_run_name=flow_run_name, persist_result=False)
async def retry_failures(
    output: Location,
    image_root: Location,
    kinds: list[FailureKind] = [],  # noqa: B006 - Prefect makes the form's default of it
    server: VLLMServer | None = None,
    recipe: AnnotationRecipe | None = None,
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto",
    chunk_size: Annotated[int, Field(ge=1, le=100_000)] = 500,
    caption_column: str = "caption",
) -> State[Any]:
    """Asks again the images that the failures file of an output holds; what fails again stays in it.

    Args:
        output: The result that lacks them, a .jsonl file, by path or URL.
        image_root: The folder that image paths are relative to, by path or URL.
        kinds: Only failures of these kinds, such as timeout; the others are left as they are. Empty takes all.
        server: Where vLLM answers, or how to start it; empty takes http://localhost:8000/v1 and the model it serves.
        recipe: Must be the one that the output was made with; empty takes the built-in one.
        max_concurrency: Most requests in flight; "auto" finds what each server can use, and follows it.
        chunk_size: Images a chunk; a chunk is one task run.
        caption_column: The column that holds the caption; empty when there are none.

    """
    try:
        workspace, chosen, others = await run_to_end(chosen_failures, output, kinds)
    except (UsageError, OSError) as error:
        message = explained(error, output) if isinstance(error, OSError) else str(error)
        get_run_logger().error("%s", message)
        return Failed(message=message)
    if not chosen:
        return Completed(message=f"nothing to ask again: {_told(others) or 'no'} failures in {workspace.failures}")
    get_run_logger().info("Asking again %s; leaving alone %s", _told(chosen), _told(others) or "none")
    state: State[Any] = await annotate_images(
        input=workspace.retried,
        image_root=image_root,
        output=output,
        server=server,
        recipe=recipe,
        max_concurrency=max_concurrency,
        chunk_size=chunk_size,
        caption_column=caption_column,
        error_budget=1,  # what has failed before may well fail again
        return_state=True,
    )
    # A state of its own: of a sub-run's, Prefect would keep neither message nor data.
    result = await state.aresult(raise_on_failure=False)
    return Completed(message=state.message, data=result) if state.is_completed() else Failed(message=state.message)


def chosen_failures(output: Path | str, kinds: list[FailureKind]) -> tuple[Workspace, Counter[str], Counter[str]]:
    """Splits the failures of an output at a path or a URL; returns its workspace and what `split_failures` does."""
    with opened(output) as files, files.workspace.locked():
        return files.workspace, *split_failures(files.workspace, kinds)


def split_failures(workspace: Workspace, kinds: list[FailureKind]) -> tuple[Counter[str], Counter[str]]:
    """Writes the rows to ask again; returns how many of each kind these are, and how many the next merge leaves."""
    chosen, others = Counter[str](), Counter[str]()
    if not workspace.failures.exists():
        return chosen, others
    with workspace.failures.open("rb") as failures, replacing(workspace.retried) as retried:
        for line in failures:
            failure = (json_object(line) or {}).get("failure")
            kind = str(failure.get("kind")) if isinstance(failure, dict) else "unknown"
            if kind in kinds or not kinds:
                chosen[kind] += 1
                retried.write(line)
            else:
                others[kind] += 1
    return chosen, others


def _told(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
