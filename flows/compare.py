"""The flow that compares two outputs of one input."""

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
from vllm_annotate.evaluation.comparison_tables import comparison_markdown, comparison_sentence
from vllm_annotate.evaluation.report import compare_to_files
from vllm_annotate.storage.locations import Location, Output, local_paths, name_of
from vllm_annotate.threads import run_to_end
from vllm_annotate.version import VERSION


def flow_run_name() -> str:
    """Names a run after both outputs."""
    both = (name_of(runtime.flow_run.parameters[which]) for which in ("output", "other"))
    return f"comparison of {' and '.join(both)}"


@flow(name="compare", flow_run_name=flow_run_name, version=VERSION)
async def compare(
    output: Output,
    other: Output,
    truth: Location | None = None,
    synonyms: Location | None = None,
    image_root: Location | None = None,
) -> State[Any]:
    """Compares two outputs of one input, and shows what differs as an artifact; with a truth, also which is better.

    Args:
        output: A result, a .jsonl file or a folder of results, at a path or a URL; the comparison calls it A.
        other: Another result for the same images, with another model, prompt or budget; the comparison calls it B.
        truth: Rows with image_path and objects, as an output has them, or a COCO file; empty compares without one.
        synonyms: YAML or JSON file with groups of equal names.
        image_root: Folder or URL of the images, for the page; empty for that of the output's run.

    """
    stopped = Event()
    try:
        paths = local_paths({"truth": truth, "synonyms": synonyms})
        work = partial(compare_to_files, output, other, **paths, image_root=image_root, stopped=stopped)
        figures, files = await run_to_end(work, give_up=stopped.set)
    except (UsageError, OSError) as error:
        return refused(error, output)
    said = comparison_sentence(figures)
    await MarkdownArtifact(
        key="annotate-comparison", markdown=comparison_markdown(figures, files), description=said
    ).acreate()
    return Completed(message=said, data=str(files[0]))
