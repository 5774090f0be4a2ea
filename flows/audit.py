"""The flow that asks for a sample of an output again, and compares the answers."""

from pathlib import Path
from typing import Annotated, Any

from prefect import get_run_logger, runtime
from prefect.artifacts import MarkdownArtifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from blocks import AnnotationRecipe, VLLMServer
from flows.support.earlier_run import of_earlier_run
from flows.support.flow import flow
from flows.support.outcome import refused
from flows.support.shown_secrets import hide_secrets
from flows.support.termination import ended_by_sigterm
from vllm_annotate.errors import ServerFault, UsageError
from vllm_annotate.evaluation.audit_page import audit_markdown, audit_sentence
from vllm_annotate.job import Job, remembered_job
from vllm_annotate.pipeline.audit import REMEMBERED, Auditing, AuditSettings
from vllm_annotate.storage.locations import Location, Output, local_paths, name_of
from vllm_annotate.threads import run_to_end
from vllm_annotate.version import VERSION


def flow_run_name() -> str:
    """Names a run after the output."""
    return f"audit of {name_of(runtime.flow_run.parameters['output'])}"


@flow(name="audit", flow_run_name=flow_run_name, version=VERSION)
async def audit(
    output: Output,
    image_root: Location | None = None,
    server: VLLMServer | None = None,
    recipe: AnnotationRecipe | None = None,
    sample: Annotated[int, Field(ge=1, le=100_000)] = 500,
    sample_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
    asks: Annotated[int, Field(ge=1, le=10)] = 3,
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7,
    truth: Location | None = None,
    synonyms: Location | None = None,
) -> State[Any]:
    """Asks for a random sample of an output again, and estimates how far its answers can be trusted.

    The output does not change. Run it again to resume.

    Args:
        output: The result to audit, a .jsonl file.
        image_root: Folder or URL that image paths are relative to; empty for that of the output's run.
        server: Endpoints of vLLM, or how to start it; empty uses that of the output's run.
        recipe: Prompts, sampling, schema and image budget; empty uses that of the output's run.
        sample: Answered images, at random, to ask for again; a larger sample contains a smaller one.
        sample_seed: Another seed draws another sample.
        asks: Further answers for each image.
        temperature: Sampling temperature of the further answers.
        truth: Rows with image_path and objects, or a COCO file, for calibration; empty for labeled.reviewed.jsonl.
        synonyms: YAML or JSON file with groups of equal names.

    """
    given, logger = {"image_root": image_root, "server": server, "recipe": recipe}, get_run_logger()
    settings = AuditSettings(sample=sample, sample_seed=sample_seed, asks=asks, temperature=temperature)
    await hide_secrets(server)
    try:
        paths = local_paths({"output": output, "truth": truth, "synonyms": synonyms})
        job = await run_to_end(job_of, paths.pop("output"), given)
        auditing = await run_to_end(lambda: Auditing.of(job, settings, **paths))
        async with ended_by_sigterm():
            finished = await auditing.ask(logger)
        found = await run_to_end(auditing.conclude)
    except (UsageError, ServerFault, OSError) as error:
        return refused(error, output)
    said = audit_sentence(found.figures)
    await MarkdownArtifact(
        key="annotate-audit", markdown=audit_markdown(found.figures, found.files), description=said
    ).acreate()
    if not finished:
        return Failed(message=f"{said}; some images got no further answer: run it again to ask for them")
    return Completed(message=said, data=str(found.files[0]))


def job_of(output: Path, given: dict[str, Any]) -> Job:
    """The job of the output's run, with what is given in its place. Raises UsageError."""
    own = {name: value for name, value in given.items() if value is not None}
    fields = of_earlier_run(output, given, REMEMBERED) | own
    if "image_root" not in fields and not remembered_job(output):
        raise UsageError(f"no run of {output} is recorded beside it: correct output, or set image_root")
    return Job(input=output, output=output, **fields)
