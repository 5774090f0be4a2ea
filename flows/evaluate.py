"""The flow that scores an output against a truth."""

from functools import partial
from threading import Event
from typing import Any

from prefect import runtime
from prefect.artifacts import MarkdownArtifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.support.flow import flow
from flows.support.outcome import refused
from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.report import evaluate_to_files
from vllm_annotate.evaluation.tables import evaluation_markdown, evaluation_sentence
from vllm_annotate.storage.locations import Location, Output, local_paths, name_of
from vllm_annotate.threads import run_to_end
from vllm_annotate.version import VERSION


def flow_run_name() -> str:
    """Names a run after the output."""
    return f"evaluation of {name_of(runtime.flow_run.parameters['output'])}"


@flow(name="evaluate", flow_run_name=flow_run_name, version=VERSION)
async def evaluate(
    output: Output, truth: Location, image_root: Location | None = None, synonyms: Location | None = None
) -> State[Any]:
    """Scores the boxes of an output against a truth, and shows the scores as an artifact.

    Args:
        output: The result to score, a .jsonl file or a folder of results; a path or a URL.
        truth: Rows with image_path and objects, as an output has them, or a COCO file.
        image_root: Folder or URL of the images, for the page; empty for that of the output's run.
        synonyms: YAML or JSON file with groups of equal names.

    """
    stopped = Event()
    try:
        paths = local_paths({"truth": truth, "synonyms": synonyms})
        work = partial(evaluate_to_files, output, **paths, image_root=image_root, stopped=stopped)
        figures, files = await run_to_end(work, give_up=stopped.set)
    except (UsageError, OSError) as error:
        return refused(error, output)
    said = evaluation_sentence(figures)
    await MarkdownArtifact(
        key="annotate-evaluation", markdown=evaluation_markdown(figures, files), description=said
    ).acreate()
    return Completed(message=said, data=str(files[0]))
