"""Rebuilds report.html from a run's output, report.json and samples."""

from pathlib import Path

from jinja2 import UndefinedError

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.input_images import images_at, images_inside
from vllm_annotate.job import remembered_job
from vllm_annotate.report.about import language_of
from vllm_annotate.report.figures import telemetry_charts
from vllm_annotate.report.page import write_page
from vllm_annotate.report.report import Report, read_report
from vllm_annotate.report.whole import with_whole
from vllm_annotate.results.files import Files
from vllm_annotate.results.output_files import output_files
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.locations import location
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.telemetry.sample_log import read_samples


def remake_page(output: Path | str, image_root: Path | str | None = None, shard: str = "") -> str:
    """Replaces report.html of an output at a path or a URL, with the images of its last run; returns its location.

    Raises UsageError if neither that run nor `image_root` tells where they are.
    """
    had = remembered_job(output)
    where = image_root or had.get("image_root")
    images = images_inside(had) if where is None else images_at(location(where), had)
    if images is None:
        raise UsageError(f"no run of {output} is recorded beside it: correct the output, or set image_root")
    with output_files(output, shard) as files, files.workspace.locked():
        page = write_page_again(files, images)
        files.publish()
    return str(page) if isinstance(output, Path) else output.removesuffix(".jsonl") + ".report.html"


def write_page_again(files: Files, image_root: ImageRoot) -> Path:
    """Replaces report.html; returns its path. Raises UsageError if report.json is missing or unreadable."""
    workspace = files.workspace
    report = read_report(workspace.report)
    if report is None:
        raise UsageError(f"{workspace.report} does not exist: finish a run of {workspace.output}, which writes it")
    try:
        report = with_whole(report, files)
        write_page(workspace, image_root, report, last_charts(workspace, report))
    except (KeyError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise UsageError(
            f"{workspace.report} is corrupt or of another version ({error!r:.200}): run the annotation again; it sends "
            "no request twice"
        ) from None
    return workspace.page


def last_charts(workspace: Workspace, report: Report) -> list[str]:
    """The charts of the last run that had something to do, from its samples on disk."""
    samples = read_samples(workspace.telemetry, report.last.started, report.last.seconds)
    return telemetry_charts(samples, language_of(report))
