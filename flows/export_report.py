"""The flow that rebuilds report.html of an output."""

from typing import Any

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.support.flow import flow
from flows.support.outcome import refused
from vllm_annotate.errors import UsageError
from vllm_annotate.pipeline.report_page import remake_page
from vllm_annotate.storage.locations import OptionalLocation, Output, name_of
from vllm_annotate.threads import run_to_end
from vllm_annotate.version import VERSION


def flow_run_name() -> str:
    """Names a run after the output."""
    return f"report of {name_of(runtime.flow_run.parameters['output'])}"


@flow(name="export-report", flow_run_name=flow_run_name, version=VERSION)
async def export_report(output: Output, image_root: OptionalLocation = None) -> State[Any]:
    """Rebuilds report.html of an output, after you edited or lost it or upgraded vllm-annotate.

    Args:
        output: The result to report on, a .jsonl file or URL; also one of its shards.
        image_root: Folder or URL that image paths are relative to; empty for that of the last run.

    """
    try:
        page = await run_to_end(remake_page, output, image_root)
    except (UsageError, OSError) as error:
        return refused(error, output)
    return Completed(message=f"wrote {page}", data=page)
