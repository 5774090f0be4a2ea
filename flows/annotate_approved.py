"""The flow that asks before it spends: pilot → estimate and samples → a person's word → the run of the whole."""

import asyncio
from typing import Annotated, Any, Literal

from prefect import get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from blocks import AnnotationRecipe, VLLMServer
from flows.pilot import pilot
from flows.support.flow import REQUIRED, flow
from flows.support.shown_secrets import hide_secrets
from flows.support.sub_runs import SubRuns, check_deployment, run_parameter
from vllm_annotate.errors import UsageError
from vllm_annotate.job import SELECTING, Job
from vllm_annotate.pipeline.pilot import as_markdown
from vllm_annotate.storage.locations import Location, OptionalLocation, Output, name_of, run_name
from vllm_annotate.version import VERSION

POLL_SECONDS = 5
MARGIN_SECONDS = 3600  # Prefect's own timeout comes later than ours: it would end the run as Failed


class Approval(RunInput):
    """The form that a person fills in to go on."""

    go_on: bool = Field(default=True, title="Annotate the rest?", description="Without it, nothing more is done.")
    limit: Annotated[int, Field(ge=0)] = Field(
        default=0, title="Limit", description="Only the first so many images of the input; 0 for all."
    )
    max_concurrency: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, title="Requests in flight", description="At most; 0 for what the parameter max_concurrency says."
    )


def flow_run_name() -> str:
    """Names a run after output and machine."""
    return f"annotate {run_name(runtime.flow_run.parameters)} if approved"


@flow(name="annotate-approved", flow_run_name=flow_run_name, version=VERSION)
async def annotate_approved(
    input: Location,  # noqa: A002 - as in annotate_images
    image_root: OptionalLocation = None,
    output: Output = REQUIRED,
    server: VLLMServer | None = None,
    recipe: AnnotationRecipe | None = None,
    sample: Annotated[int, Field(ge=30)] = 200,
    sample_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto",
    image_column: Annotated[str, Field(min_length=1)] = "image_path",
    caption_column: str = "caption",
    approval_timeout_hours: Annotated[float, Field(gt=0, le=8760)] = 168,
    deployment: str = "annotate-images/annotate",
) -> State[Any]:
    """Annotates a sample, shows what the rest will take, waits for approval, and then starts the run of the whole.

    While it waits, it holds no lock, no server and no place of a concurrency limit. Refused, or not approved in time,
    it ends as Cancelled.

    Args:
        input: The images: a .jsonl (also .gz, .zst) or .parquet file with an image path and a caption per row, or a
            WebDataset .tar or a .parquet file with the images inside. A path, a URL such as
            s3://bucket/captions.jsonl, a folder, or a pattern such as tars/*.tar.
        image_root: Folder or URL that image paths are relative to; nothing outside it is read. Empty if the images are
            inside the input.
        output: The result: a .jsonl file or URL, or without that ending a folder with a file for each input file.
            Images that are already in it are skipped.
        server: Endpoints of vLLM, or how to start it; empty uses http://localhost:8000/v1 and the model it serves.
        recipe: Prompts, sampling, schema and image budget; empty uses the built-in recipe.
        sample: How many images the pilot annotates, at random.
        sample_seed: Another seed draws another sample.
        max_concurrency: Maximum requests in flight; auto finds and follows what each server can use.
        image_column: Input column with the image path.
        caption_column: Input column with the caption; empty if there are no captions.
        approval_timeout_hours: How long it waits for approval.
        deployment: What runs the whole, as flow/deployment.

    """
    job, logger = Job.from_parameters(locals()), get_run_logger()
    await hide_secrets(server)
    try:
        blocks = {"server": run_parameter(server), "recipe": run_parameter(recipe)}
        await check_deployment(deployment)
    except UsageError as error:
        logger.error("%s", error)  # noqa: TRY400 - the traceback adds nothing
        return Failed(message=str(error))
    tried: State[Any] = await pilot(
        input, image_root=image_root, output=output, server=server, recipe=recipe, sample=sample,
        sample_seed=sample_seed, max_concurrency=max_concurrency, image_column=image_column,
        caption_column=caption_column, return_state=True,
    )  # fmt: skip
    if not tried.is_completed():
        return Failed(message=f"the pilot failed: {tried.message}")
    approval = await approved(tried.message or "", approval_timeout_hours)
    if approval is None:
        return Cancelled(message=f"not approved within {approval_timeout_hours:g} hours: nothing more was asked")
    if not approval.go_on:
        return Cancelled(message="refused: nothing more was asked")
    try:
        async with SubRuns(deployment) as runs:
            run = await runs.begun(of_the_whole(job, approval) | blocks, f"annotate {name_of(output)}, approved")
    except UsageError as error:
        return Failed(message=str(error))
    return Completed(message=f"approved: run {run.name} of {deployment} annotates the rest")


def of_the_whole(job: Job, approval: Approval) -> dict[str, Any]:
    """The parameters of the run of the whole, but for its blocks. The deployment's own values hold for the others."""
    parameters = job.model_dump(
        mode="json", exclude_unset=True, exclude_none=True, exclude={"server", "recipe", *SELECTING}
    )
    asked = {"max_concurrency": approval.max_concurrency} if approval.max_concurrency else {}
    return parameters | {"shard": "", "limit": approval.limit} | asked


async def approved(estimate: str, hours: float) -> Approval | None:
    """Waits for a person's word; returns None if it does not come in time."""
    question = Approval.with_initial_data(description=as_markdown(estimate))
    try:
        async with asyncio.timeout(3600 * hours):
            return await apause_flow_run(
                wait_for_input=question, timeout=round(3600 * hours) + MARGIN_SECONDS, poll_interval=POLL_SECONDS
            )
    except (TimeoutError, FlowPauseTimeout):
        return None
