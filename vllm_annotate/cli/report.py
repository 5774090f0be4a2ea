"""`vllm-annotate report`: rebuilds report.html, after you edited the output or upgraded."""

from collections.abc import Mapping
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import fields_after_run, job_of
from vllm_annotate.cli.options import command, fields
from vllm_annotate.job import Job

OPTIONS = ("output", "image_root", "shard")


def app() -> App:
    """The command's options."""
    text = "Rebuild report.html of an output. Only --output is required."
    given = {each.name: each for each in fields(Job, but=("server", "recipe"))}
    return command("report", text, [given[name] for name in OPTIONS])


def run(given: Mapping[str, Any], console: Console, _interrupts: Interrupts) -> int:
    """Writes the page; returns the exit code."""
    from vllm_annotate.pipeline.report_page import remake_page

    job = job_of(fields_after_run(given, OPTIONS, input=given.get("output")))
    console.show(str(remake_page(job.output, job.image_root, given.get("shard") or "")))
    return 0


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "the report is unchanged"
