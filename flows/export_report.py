"""The flow that makes report.html anew from what a run has left: its output, report.json and samples."""

from pathlib import Path
from typing import Any

from jinja2 import UndefinedError
from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from vllm_annotate.errors import UsageError
from vllm_annotate.report.figures import telemetry_charts
from vllm_annotate.report.page import write_page
from vllm_annotate.results.mirror import opened
from vllm_annotate.storage.atomic import explained, read_json
from vllm_annotate.storage.locations import ImageRoot, Location, image_root_at, name_of
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.telemetry.sample_log import read_samples
from vllm_annotate.threads import run_to_end


def flow_run_name() -> str:
    """Tells in a list of runs whose report is made."""
    return f"report of {name_of(runtime.flow_run.parameters['output'])}"


@flow(name="export-report", flow_run_name=flow_run_name, persist_result=False)
async def export_report(output: Location, image_root: Location) -> State[Any]:
    """Writes report.html of an output anew: after it was edited or lost, or for the page of a newer version.

    Args:
        output: The result that is reported on, a .jsonl file, by path or URL; also one of its shards.
        image_root: The folder that image paths are relative to, by path or URL.

    """
    try:
        page = await run_to_end(rebuild_published, output, image_root_at(image_root))
    except (UsageError, OSError) as error:
        message = explained(error, output) if isinstance(error, OSError) else str(error)
        get_run_logger().error("%s", message)
        return Failed(message=message)
    return Completed(message=f"written: {page}", data=page)


def rebuild_published(output: Path | str, image_root: ImageRoot) -> str:
    """Replaces report.html of an output at a path or a URL; returns where it is."""
    with opened(output) as files, files.workspace.locked():
        page = rebuild_page(files.workspace, image_root)
        files.publish()
    return str(page) if isinstance(output, Path) else output.removesuffix(".jsonl") + ".report.html"


def rebuild_page(workspace: Workspace, image_root: ImageRoot) -> Path:
    """Replaces report.html; returns its path. Raises UsageError without a report.json that can be read."""
    try:
        report = read_json(workspace.report)
    except ValueError as error:
        raise UsageError(
            f"{workspace.report} is damaged ({error!s:.100}): a run of {workspace.output} writes it again"
        ) from None
    if report is None:
        raise UsageError(f"{workspace.report} is not there: a run of {workspace.output} writes it at its end")
    try:
        charts = telemetry_charts(read_samples(workspace.telemetry, report.get("started", "")))
        write_page(workspace, image_root, report, charts)
    except (KeyError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise UsageError(
            f"{workspace.report} is damaged, or of another version ({error!r:.200}): run the flow again, which asks "
            "nothing that is answered"
        ) from None
    return workspace.page
