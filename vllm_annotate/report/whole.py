"""The figures of a whole output, whichever runs wrote it."""

from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.grounding.quality import Quality
from vllm_annotate.inputs.done_index import count_lines
from vllm_annotate.report.gallery import spread_lines
from vllm_annotate.report.report import Report, Whole, read_report
from vllm_annotate.results.files import Files
from vllm_annotate.results.finished import read_finished
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.workspace import Workspace

# A second or two of reading; of a larger output, evenly spaced windows.
READ_BYTES, WINDOW_BYTES = 48 * 1024 * 1024, 512 * 1024
# In the report of a run inside another.
OF_THE_OUTPUT: dict[str, Any] = {"output": None, "last_run": None, "made_by": []}


def with_whole(report: Report, files: Files) -> Report:
    """The report with the figures of the whole output, which it reads: call it in a thread."""
    files.fetch_shown()
    workspace = files.workspace
    quality = Quality()
    for line in spread_lines(workspace.answers, READ_BYTES, WINDOW_BYTES):
        quality.add(json_object(line) or {})
    # Not every row of the output is one of the run's input, or selected.
    if workspace.is_folder:
        images = sum(entry.rows for entry in read_finished(workspace, files.output_version).values())
    else:
        images = count_lines(workspace)
    return report.model_copy(update={"output": Whole(images=images, quality=quality.summary())})


def with_last_run(report: Report, workspace: Workspace) -> Report:
    """The report of a run that had nothing to do, with that of the last run that had something."""
    try:
        before = read_report(workspace.report)
    except UsageError:  # damaged: this run replaces it
        return report
    if before is None:
        return report
    return report.model_copy(update={"last_run": before.last.model_copy(update=OF_THE_OUTPUT)})
