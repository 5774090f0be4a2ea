"""The flow that annotates a random sample, and estimates what the rest will take."""

from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import get_run_logger, runtime
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from blocks import AnnotationRecipe, VLLMServer
from flows.annotate import annotate_images
from flows.support.artifacts import sample_pictures
from flows.support.flow import REQUIRED, flow
from flows.support.outcome import ended, refused
from flows.support.shown_secrets import hide_secrets
from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.input_images import images_inside
from vllm_annotate.inputs.inside import image_root_at
from vllm_annotate.pipeline.pilot import as_markdown, estimate_in_words, pilot_output
from vllm_annotate.results.written import written_files
from vllm_annotate.storage.locations import Given, Location, OptionalLocation, Output, run_name
from vllm_annotate.threads import run_to_end
from vllm_annotate.version import VERSION


def flow_run_name() -> str:
    """Names a run after output and machine."""
    return f"pilot of {run_name(runtime.flow_run.parameters)}"


@flow(name="pilot", flow_run_name=flow_run_name, version=VERSION)
async def pilot(
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
) -> State[Any]:
    """Annotates a random sample into an output of its own, and estimates what the rest will take.

    A later run of annotate with the same recipe takes the answers of the pilot, unless the output is a folder.

    Args:
        input: The images: a .jsonl (also .gz, .zst) or .parquet file with an image path and a caption per row, or a
            WebDataset .tar or a .parquet file with the images inside. A path, a URL such as
            s3://bucket/captions.jsonl, a folder, or a pattern such as tars/*.tar.
        image_root: Folder or URL that image paths are relative to; nothing outside it is read. Empty if the images are
            inside the input.
        output: The result of the whole, such as labeled.jsonl; the pilot writes labeled.pilot.jsonl beside it. Of a
            folder, labeled, it writes the folder labeled-pilot.
        server: Endpoints of vLLM, or how to start it; empty uses http://localhost:8000/v1 and the model it serves.
        recipe: Prompts, sampling, schema and image budget; empty uses the built-in recipe.
        sample: How many images, at random; a larger sample contains a smaller one.
        sample_seed: Another seed draws another sample.
        max_concurrency: Maximum requests in flight; auto finds and follows what each server can use.
        image_column: Input column with the image path.
        caption_column: Input column with the caption; empty if there are no captions.

    """
    parameters = dict(locals())
    await hide_secrets(server)
    try:
        own = await run_to_end(pilot_output, output)
    except (UsageError, OSError) as error:
        return refused(error, output)
    state: State[Any] = await annotate_images(**parameters | {"output": own}, return_state=True)
    # A new state: Prefect drops message and data of a subflow's state.
    result = await state.aresult(raise_on_failure=False)
    if not state.is_completed():
        return ended(Failed(message=state.message))
    estimate = await run_to_end(estimate_in_words, own)
    get_run_logger().info("%s", estimate)
    pictures = ""
    if isinstance(own, Path):
        pictures = await run_to_end(pictures_of, own, image_root, input, image_column)
    await acreate_markdown_artifact(
        key="annotate-estimate",
        markdown=f"{state.message}\n\n{as_markdown(estimate)}\n\n{pictures}",
        description=f"What the rest of {input} will take",
    )
    return ended(Completed(message=f"{state.message}\n\n{estimate}", data=result))


def pictures_of(output: Path, image_root: Path | str | None, given: Given, image_column: str) -> str:
    """Markdown with some answers of a pilot."""
    fields = {"input": given, "image_column": image_column, "output": output}
    try:
        images = images_inside(fields) if image_root is None else image_root_at(image_root, image_column)
    except UsageError:  # the input has changed meanwhile
        return ""
    return "" if images is None else sample_pictures(written_files(output), images)
