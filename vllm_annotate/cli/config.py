"""`vllm-annotate config`: writes, changes or shows a job file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import job_fields, job_of, job_options, read_job, saved_blocks, written
from vllm_annotate.cli.options import command
from vllm_annotate.job import Job
from vllm_annotate.storage.atomic import replacing


def app() -> App:
    """The command's options."""
    text = "Write a job file, change options in it, or show it. vllm-annotate annotate --job FILE runs it."
    return command("config", text, job_options())


def run(given: Mapping[str, Any], _console: Console, _interrupts: Interrupts) -> int:
    """Writes the file if options are given, then prints it; returns the exit code."""
    options = {name: value for name, value in given.items() if value is not None and name != "job"}
    path = Path(given["job"]) if given.get("job") else None
    known = read_job(path) if path is not None and path.exists() else {}
    known = job_fields(options, known)
    job = _checked(known)
    numbers = {name: value for name in options if isinstance(value := getattr(job, name, None), int | float)}
    known |= numbers  # not as the texts that options are
    if path is not None and options:
        with replacing(path) as file:
            file.write(written(known).encode())
    print(written(known), end="")
    return 0


def _checked(known: Mapping[str, Any]) -> Job:
    """The job; raises UsageError for an invalid field. Required fields may be missing: options can set them later."""
    anything = {name: "x" for name in ("input", "image_root", "output") if name not in known}
    values = {name: value for name, value in known.items() if name not in saved_blocks(known)}
    return job_of(values | anything)


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "the job file is unchanged"
