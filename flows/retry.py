"""The flow that retries failures, all of them or some kinds."""

from typing import Annotated, Any, Literal

from prefect import get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from blocks import AnnotationRecipe, VLLMServer
from flows.annotate import annotate_images
from flows.support.earlier_run import of_earlier_run
from flows.support.flow import flow
from flows.support.outcome import ended, refused
from flows.support.shown_secrets import hide_secrets
from vllm_annotate.errors import FailureKind, UsageError
from vllm_annotate.pipeline.retrying import retried_input
from vllm_annotate.results.retry import chosen_failures, counted, nothing_to_retry
from vllm_annotate.storage.locations import OptionalLocation, Output, run_name
from vllm_annotate.threads import run_to_end
from vllm_annotate.version import VERSION

# Empty: as in the last run of the output.
REMEMBERED = ("image_root", "image_column", "server", "recipe", "caption_column")


def flow_run_name() -> str:
    """Names a run after output and machine."""
    return f"retry failures of {run_name(runtime.flow_run.parameters)}"


@flow(name="retry-failures", flow_run_name=flow_run_name, version=VERSION)
async def retry_failures(
    output: Output,
    image_root: OptionalLocation = None,
    kinds: list[FailureKind] = [],  # noqa: B006 - the default in Prefect's form
    server: VLLMServer | None = None,
    recipe: AnnotationRecipe | None = None,
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto",
    chunk_size: Annotated[int, Field(ge=1, le=100_000)] = 500,
    caption_column: str | None = None,
    server_wait_seconds: Annotated[float, Field(ge=0)] = 300,
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 600,
    chunk_retries: Annotated[int, Field(ge=0, le=10)] = 1,
    canary_every: Annotated[int, Field(ge=0)] = 500,
) -> State[Any]:
    """Retries the images in the failures file of an output. Images that fail again stay in it.

    Args:
        output: The result, a .jsonl file or URL; images that are already in it are skipped.
        image_root: Folder or URL that image paths are relative to; empty for that of the run that failed.
        kinds: Only failures of these kinds, such as timeout; the others stay as they are. Empty retries all.
        server: Endpoints of vLLM, or how to start it; empty uses that of the run that failed.
        recipe: Prompts, sampling, schema and image budget; empty uses that of the run that failed.
        max_concurrency: Maximum requests in flight; auto finds and follows what each server can use.
        chunk_size: Images per chunk, at least: of over 1,000,000 images chunks are larger, so that there are at most
            2,000. Each chunk is one task run.
        caption_column: Input column with the caption, empty if there are no captions; by default that of the run that
            failed.
        server_wait_seconds: How long requests wait for a server that is down.
        request_timeout_seconds: How long one request may take.
        chunk_retries: How often to retry a chunk whose server went down.
        canary_every: Answers of an endpoint between two drawn test scenes, which show whether its boxes are still
            right; 0 for none.

    """
    settings = dict(locals())
    del settings["kinds"]
    await hide_secrets(server)
    try:
        known = await run_to_end(of_earlier_run, output, settings, REMEMBERED)
        settings |= {"caption_column": "caption" if caption_column is None else caption_column} | known
        workspace, chosen, others = await run_to_end(chosen_failures, output, kinds)
        again = await run_to_end(retried_input, output, workspace)
    except (UsageError, OSError) as error:
        return refused(error, output)
    if not chosen:
        return ended(Completed(message=nothing_to_retry(others, workspace)))
    get_run_logger().info("Retrying %s; not retrying %s", counted(chosen), counted(others) or "none")
    state: State[Any] = await annotate_images(
        **settings | again,
        error_budget=1,  # failed images are likely to fail again
        return_state=True,
    )
    # A new state: Prefect drops message and data of a subflow's state.
    result = await state.aresult(raise_on_failure=False)
    return Completed(message=state.message, data=result) if state.is_completed() else Failed(message=state.message)
