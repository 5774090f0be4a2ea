"""The flow that makes report.html anew from what a run has left: its output, report.json and samples."""

import asyncio
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError
from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.errors import UsageError
from flows.report.figures import telemetry_charts
from flows.report.page import write_page
from flows.telemetry.sample_log import read_samples
from flows.workspace import Workspace, read_json


def flow_run_name() -> str:
    """Tells in a list of runs whose report is made."""
    return f"report of {Path(str(runtime.flow_run.parameters['output'])).name}"


@flow(name="export-report", flow_run_name=flow_run_name, persist_result=False)
async def export_report(output: Path, image_root: Path) -> State[Any]:
    """Writes report.html of an output anew: after it was edited or lost, or for the page of a newer version.

    Args:
        output: The result that is reported on, a .jsonl file; also one of its shards.
        image_root: The folder that image paths are relative to.

    """
    try:
        page = await asyncio.to_thread(rebuild_page, Workspace.at(output), image_root.expanduser())
    except UsageError as error:
        get_run_logger().error("%s", error)
        return Failed(message=str(error))
    return Completed(message=f"written: {page}", data=str(page))


def rebuild_page(workspace: Workspace, image_root: Path) -> Path:
    """Replaces report.html; returns its path. Raises UsageError without a report.json that can be read."""
    report = read_json(workspace.report)
    if report is None:
        raise UsageError(
            f"{workspace.report} is not there or no JSON: a run of {workspace.output} writes it at its end"
        )
    try:
        charts = telemetry_charts(read_samples(workspace.telemetry, report.get("started", "")))
        write_page(workspace, image_root, report, charts)
    except (KeyError, TypeError, AttributeError, UndefinedError) as error:
        raise UsageError(
            f"{workspace.report} is damaged, or of another version ({error!r:.200}): run the flow again, which asks "
            "nothing that is answered"
        ) from None
    return workspace.page
