"""The flow that annotates: check the server → plan → prove the servers → annotate chunks → merge → report."""

if __name__ == "__main__":
    # Before the imports below: the command line settles Prefect's environment first, and imports this module under its
    # own name, where deployments and pickles look for the flow.
    from vllm_annotate.cli.start import start

    start("annotate")

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from blocks import AnnotationRecipe, VLLMServer
from flows.support.artifacts import live_artifacts
from flows.support.chunk_task import ChunkTasks, shorten_tracebacks
from flows.support.flow import REQUIRED, flow
from flows.support.outcome import ended
from flows.support.shown_secrets import hide_secrets
from flows.support.termination import ended_by_sigterm
from vllm_annotate.errors import ServerFault, UsageError
from vllm_annotate.job import Job
from vllm_annotate.pipeline.progress import showing_progress
from vllm_annotate.pipeline.recording import recording
from vllm_annotate.pipeline.session import open_run
from vllm_annotate.pipeline.steps import plan, prove_servers, publish_report
from vllm_annotate.report.summary import sentence
from vllm_annotate.storage.disk_errors import explained
from vllm_annotate.storage.locations import Given, OptionalLocation, Output, run_name
from vllm_annotate.version import VERSION

Result = TypeVar("Result")


def flow_run_name() -> str:
    """Names a run after output, shard and machine."""
    return f"annotate {run_name(runtime.flow_run.parameters)}"


@flow(name="annotate-images", flow_run_name=flow_run_name, version=VERSION)
async def annotate_images(
    input: Given,  # noqa: A002 - the command line's --input
    image_root: OptionalLocation = None,
    output: Output = REQUIRED,
    server: VLLMServer | None = None,
    recipe: AnnotationRecipe | None = None,
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = "auto",
    chunk_size: Annotated[int, Field(ge=1, le=100_000)] = 500,
    image_column: Annotated[str, Field(min_length=1)] = "image_path",
    caption_column: str = "caption",
    shard: str = "",
    error_budget: Annotated[float, Field(ge=0, le=1)] = 0.5,
    server_wait_seconds: Annotated[float, Field(ge=0)] = 300,
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 600,
    chunk_retries: Annotated[int, Field(ge=0, le=10)] = 1,
    canary_every: Annotated[int, Field(ge=0)] = 500,
    limit: Annotated[int, Field(ge=0)] = 0,
    sample: Annotated[int, Field(ge=0)] = 0,
    sample_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
    own_names: Literal["keep", "drop"] = "keep",
    output_format: Literal["jsonl", "jsonl.zst", "parquet"] = "jsonl",
) -> State[Any]:
    """Writes a rationale and named boxes for every image of a JSONL or Parquet file. Run it again to resume.

    Args:
        input: The images: a .jsonl (also .gz, .zst) or .parquet file with an image path and a caption per row, or a
            WebDataset .tar or a .parquet file with the images inside. A path, a URL such as
            s3://bucket/captions.jsonl, a folder, a pattern such as tars/*.tar, or several of these.
        image_root: Folder or URL that image paths are relative to; nothing outside it is read. Empty if the images are
            inside the input.
        output: The result: a .jsonl file or URL, or without that ending a folder with a file for each input file.
            Images that are already in it are skipped.
        server: Endpoints of vLLM, or how to start it; empty uses http://localhost:8000/v1 and the model it serves.
        recipe: Prompts, sampling, schema and image budget; empty uses the built-in recipe.
        max_concurrency: Maximum requests in flight; auto finds and follows what each server can use.
        chunk_size: Images per chunk, at least: of over 1,000,000 images chunks are larger, so that there are at most
            2,000. Each chunk is one task run.
        image_column: Input column with the image path.
        caption_column: Input column with the caption; empty if there are no captions.
        shard: Share of the input to annotate, such as 3/16; empty for all of it.
        error_budget: Share of the last 500 images that may fail before the chunk at work stops. Ten failures are always
            allowed, unless it is 0.
        server_wait_seconds: How long requests wait for a server that is down.
        request_timeout_seconds: How long one request may take.
        chunk_retries: How often to retry a chunk whose server went down.
        canary_every: Answers of an endpoint between two drawn test scenes, which show whether its boxes are still
            right; 0 for none.
        limit: Only the first so many distinct images of the input; 0 for all.
        sample: Only so many distinct images of the input, at random; a larger sample contains a smaller one. 0 for all.
        sample_seed: Another seed draws another sample.
        own_names: Whether answers keep the columns of image_column and caption_column under their own names too, beside
            image_path and caption.
        output_format: Form of new files of an output that is a folder, from when they are finished: lines, compressed
            lines, or a table.

    """
    job = Job(**locals())
    logger, started = get_run_logger(), time.monotonic()
    opening = open_run(job, logger.info, logger.warning)
    shorten_tracebacks()
    await hide_secrets(server)
    try:
        async with ended_by_sigterm(), opening as run:
            logger.info("Model %s at %s, recipe %s", run.model, ", ".join(run.versions), run.recipe_fingerprint)
            work = await step("plan", partial(plan, run, logger))
            await step("prove", partial(prove_servers, run, work, logger))
            async with (
                recording(run, work, logger.warning) as telemetry,
                live_artifacts(run, work, telemetry, logger.warning) as artifacts,
                showing_progress(run.annotator, work, logger),
            ):
                await work.annotate(ChunkTasks(logger).of_input)
            merged = await step("merge", partial(work.finish, logger))
            seconds = time.monotonic() - started
            report = await step("report", partial(publish_report, run, work, merged, telemetry, seconds, logger))
            await artifacts.finish(report)
            logger.info("%s", sentence(report))
    except (UsageError, ServerFault) as error:
        logger.error("%s", error)  # noqa: TRY400 - the traceback adds nothing
        return ended(Failed(message=str(error), data=error))
    except OSError as error:
        message = explained(error, output)
        logger.error("%s", message)  # noqa: TRY400
        return ended(Failed(message=message, data=error))
    if not report.came_to_its_end:
        return ended(Failed(message=sentence(report)))
    return ended(Completed(message=sentence(report), data=report.model_dump(mode="json")))


async def step(name: str, work: Callable[[], Awaitable[Result]]) -> Result:
    """Runs a step as a task, so that the Prefect UI shows its timing."""

    @task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    async def run_step() -> Result:
        return await work()

    return await run_step()
