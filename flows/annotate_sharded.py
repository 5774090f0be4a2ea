"""The flow for several machines: one run per shard on the work pool → restart lost ones → merge → report."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from blocks import AnnotationRecipe, VLLMServer
from flows.support.flow import REQUIRED, flow
from flows.support.shown_secrets import hide_secrets
from flows.support.sub_runs import SubRuns, check_deployment, run_parameter
from flows.support.termination import ended_by_sigterm
from vllm_annotate.errors import UsageError
from vllm_annotate.job import SELECTING, Job
from vllm_annotate.pipeline.files import check_distinct, check_single, input_files, several_images
from vllm_annotate.pipeline.found_input import find_input
from vllm_annotate.pipeline.publish_shards import merge_and_publish
from vllm_annotate.report.report import Report
from vllm_annotate.report.summary import sentence
from vllm_annotate.results.shard_files import check_count, shards_begun
from vllm_annotate.storage.disk_errors import explained
from vllm_annotate.storage.locations import Location, OptionalLocation, Output, name_of, run_name
from vllm_annotate.storage.output_paths import names_folder
from vllm_annotate.storage.shard import MAX_SHARDS, Shard
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.threads import run_to_end
from vllm_annotate.version import VERSION

RETRY_SECONDS = 15.0  # a lost run may need a while to release its shard


def flow_run_name() -> str:
    """Names a run after output and machine."""
    return f"annotate {run_name(runtime.flow_run.parameters)}, in shards"


@flow(name="annotate-sharded", flow_run_name=flow_run_name, version=VERSION)
async def annotate_sharded(
    input: Location,  # noqa: A002 - as in annotate_images
    image_root: OptionalLocation = None,
    output: Output = REQUIRED,
    shards: Annotated[int, Field(ge=1, le=MAX_SHARDS)] = REQUIRED,
    at_once: Annotated[int, Field(ge=0)] = 0,
    shard_retries: Annotated[int, Field(ge=0, le=100)] = 2,
    deployment: str = "annotate-images/shard",
    server: VLLMServer | None = None,
    recipe: AnnotationRecipe | None = None,
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto",
    chunk_size: Annotated[int, Field(ge=1, le=100_000)] = 500,
    image_column: Annotated[str, Field(min_length=1)] = "image_path",
    caption_column: str = "caption",
    error_budget: Annotated[float, Field(ge=0, le=1)] = 0.5,
    server_wait_seconds: Annotated[float, Field(ge=0)] = 300,
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 600,
    chunk_retries: Annotated[int, Field(ge=0, le=10)] = 1,
    canary_every: Annotated[int, Field(ge=0)] = 500,
    own_names: Literal["keep", "drop"] = "keep",
    output_format: Literal["jsonl", "jsonl.zst", "parquet"] = "jsonl",
) -> State[Any]:
    """Annotates the images in shards, each a separate run on a worker, and merges their answers.

    The workers share input, images and output, in a folder or an object store. If a shard's run is lost or fails,
    another worker restarts it, and it resumes where it stopped.

    Args:
        input: The images: a .jsonl (also .gz, .zst) or .parquet file with an image path and a caption per row, or a
            WebDataset .tar or a .parquet file with the images inside. A path, a URL such as
            s3://bucket/captions.jsonl, a folder, or a pattern such as tars/*.tar.
        image_root: Folder or URL that image paths are relative to; nothing outside it is read. Empty if the images are
            inside the input.
        output: The result: a .jsonl file or URL, or without that ending a folder with a file for each input file.
            Images that are already in it are skipped.
        shards: Into how many shards the input is split; of several files, at most as many.
        at_once: How many of them run at the same time; 0 leaves it to the workers.
        shard_retries: How often a shard whose run was lost or failed is restarted.
        deployment: What runs a shard, as flow/deployment.
        server: Endpoints of vLLM, or how to start it; empty uses http://localhost:8000/v1 and the model it serves.
        recipe: Prompts, sampling, schema and image budget; empty uses the built-in recipe.
        max_concurrency: Maximum requests in flight; auto finds and follows what each server can use.
        chunk_size: Images per chunk, at least: of over 1,000,000 images chunks are larger, so that there are at most
            2,000. Each chunk is one task run.
        image_column: Input column with the image path.
        caption_column: Input column with the caption; empty if there are no captions.
        error_budget: Share of the last 500 images that may fail before the chunk at work stops. Ten failures are always
            allowed, unless it is 0.
        server_wait_seconds: How long requests wait for a server that is down.
        request_timeout_seconds: How long one request may take.
        chunk_retries: How often to retry a chunk whose server went down.
        canary_every: Answers of an endpoint between two drawn test scenes, which show whether its boxes are still
            right; 0 for none.
        own_names: Whether answers keep the columns of image_column and caption_column under their own names too, beside
            image_path and caption.
        output_format: Form of new files of an output that is a folder, from when they are finished: lines, compressed
            lines, or a table.

    """
    job, logger = Job.from_parameters(locals()), get_run_logger()
    await hide_secrets(server)
    try:
        check_distinct(input, output)
        await run_to_end(check_input, job, shards)
        blocks = {"server": run_parameter(server), "recipe": run_parameter(recipe)}
        parameters = (
            job.model_dump(mode="json", exclude={"server", "recipe", "shard", *SELECTING}, exclude_none=True) | blocks
        )
        await check_deployment(deployment)
        async with ended_by_sigterm(), SubRuns(deployment) as runs:
            lost = await run_shards(shards, at_once, shard_retries, runs, parameters)
        reasons = "; ".join(f"{shard}: {reason}" for shard, reason in lost.items())
        if lost and not await asyncio.to_thread(shards_begun, output):
            return Failed(message=f"no shard has any answers to merge. {reasons}")
        report = await merge_and_report(job.model_copy(update={"server": None, "recipe": None}), lost)
    except UsageError as error:
        logger.error("%s", error)  # noqa: TRY400 - the traceback adds nothing
        return Failed(message=str(error))
    except OSError as error:
        message = explained(error, output)
        logger.error("%s", message)  # noqa: TRY400
        return Failed(message=message)
    if lost:
        return Failed(message=f"{sentence(report)}. Shards that did not finish: {reasons}")
    return Completed(message=sentence(report), data=report.model_dump(mode="json"))


async def run_shards(
    count: int, at_once: int, retries: int, runs: SubRuns, parameters: Mapping[str, Any]
) -> dict[Shard, str]:
    """Runs all shards; returns those that did not finish, with the message of their last run."""
    logger = get_run_logger()
    slots = asyncio.Semaphore(at_once or count)
    lost: dict[Shard, str] = {}

    async def complete(shard: Shard) -> None:
        async with slots:
            for tries_left in range(retries, -1, -1):
                name = f"shard {shard} of {name_of(parameters['output'])}"
                try:
                    state = await runs.ended({**parameters, "shard": str(shard)}, name)
                except UsageError as error:
                    lost[shard] = str(error)
                    return
                if state.is_completed():
                    lost.pop(shard, None)
                    return
                lost[shard] = f"{state.name}: {state.message or 'no message'}"
                again = tries_left and not state.is_cancelled()
                logger.warning("Shard %s: %s%s", shard, lost[shard], "; restarting it" if again else "")
                if not again:
                    return
                await asyncio.sleep(RETRY_SECONDS)

    async with asyncio.TaskGroup() as group:
        for number in range(1, count + 1):
            group.create_task(complete(Shard(number, count)))
    return lost


@task(cache_policy=NO_CACHE, task_run_name="merge")
async def merge_and_report(job: Job, lost: Mapping[Shard, str]) -> Report:
    """Moves the answers of all shards into the output and writes the report."""
    failed = [f"shard {shard}" for shard in lost]
    say = get_run_logger().warning
    report = await run_to_end(merge_and_publish, job, failed, say)
    get_run_logger().info("%s", sentence(report))
    return report


def check_input(job: Job, count: int) -> None:
    """Raises UsageError if input or images cannot be read in so many shards: better here than in each shard."""
    if names_folder(job.output):
        if isinstance(job.output, Path):
            Workspace.at(job.output)  # raises if it can be no output
        several_images(job, input_files(job.model_copy(update={"shard": f"1/{count}"})))
        return
    check_single(job)
    with TemporaryDirectory(prefix="vllm-annotate-") as folder:
        find_input(job, Path(folder))
    check_count(job.output, count)
