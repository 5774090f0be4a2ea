"""The work of a command, and the messages at its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.jobs import job_fields
from vllm_annotate.errors import UsageError
from vllm_annotate.job import Job
from vllm_annotate.storage.locations import location
from vllm_annotate.storage.workspace import Workspace

FINISHED, FINISHED_WITH_FAILURES = 0, 1


@dataclass(frozen=True)
class Work:
    """The fields of a job and, for a retry, the kinds of failures; empty retries all."""

    fields: Mapping[str, Any]
    kinds: list[str] | None = None


def end(console: Console, job: Job, *, finished: bool) -> int:
    """Prints the files of a finished run; returns the exit code."""
    for what, where in files_of(job).items():
        console.say(f"{what:<9} {where}")
    return FINISHED if finished else FINISHED_WITH_FAILURES


def files_of(job: Job) -> dict[str, str]:
    """The files of a run, by label."""
    if not isinstance(job.output, Path):
        return {"Answers:": job.output, "Report:": f"{job.output.removesuffix('.jsonl')}.report.html"}
    workspace = Workspace.at(job.output, job.shard)
    files = {"Answers:": workspace.answers, "Failures:": workspace.failures, "Report:": workspace.page}
    return {
        what: f"{path}{' (open it in a browser)' if path == workspace.page else ''}"
        for what, path in files.items()
        if path.exists()
    }


def saved_answers(given: Mapping[str, Any]) -> str:
    """Says how many answers of an unfinished run are saved, and where."""
    from vllm_annotate.results.parts import answer_files

    try:
        known = job_fields(given)
        where = location(known.get("output"))
        if not isinstance(where, Path):
            return f"all answers so far are saved beside {where} and on this machine"
        workspace = Workspace.at(where, known.get("shard", ""))
    except (UsageError, ValueError):
        return "nothing was written"
    files = [*answer_files(workspace), *workspace.states.glob("*/growing.jsonl")]
    saved = sum(path.read_bytes().count(b"\n") for path in files)
    if not workspace.parts.is_dir():
        return "nothing was written"
    before = f", all before them in {workspace.answers}" if workspace.answers.exists() else ""
    return f"{saved} answers so far are saved in {workspace.work if workspace.is_folder else workspace.parts}{before}"
