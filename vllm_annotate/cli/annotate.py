"""`vllm-annotate annotate`: runs a job, with or without Prefect."""

import asyncio
from collections.abc import Mapping
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import PARTS, job_fields, job_of, job_options, run_options
from vllm_annotate.cli.options import command, option
from vllm_annotate.cli.run import run_work
from vllm_annotate.cli.work import FINISHED, Work, saved_answers

EPILOGUE = (
    "Exit codes: 0 every image answered; 1 finished, with failures or failed chunks; 2 refused, nothing written; 130 "
    "interrupted.\n\n"
    "Beside labeled.jsonl: labeled.failures.jsonl, labeled.report.json, labeled.report.html (open it in a browser) and "
    "the folder labeled.work."
)


def app() -> App:
    """The command's options."""
    text = "Write a rationale and named boxes for every image of JSONL, Parquet or tar files. Run it again to resume."
    dry = option("dry_run", "Only say how many images are open; needs no server, and writes nothing.", bool)
    return command("annotate", text, [*job_options(), *run_options(), dry], EPILOGUE)


def run(given: Mapping[str, Any], console: Console, interrupts: Interrupts) -> int:
    """Runs the job; returns the exit code."""
    if given.get("dry_run"):
        return _dry_run(given, console, interrupts)
    return run_work(Work(job_fields(given)), console, interrupts, without_prefect=bool(given.get("without_prefect")))


def _dry_run(given: Mapping[str, Any], console: Console, interrupts: Interrupts) -> int:
    from vllm_annotate.pipeline.dry_run import dry_run

    known = {name: value for name, value in job_fields(given).items() if name not in PARTS}  # needs neither
    try:
        console.show(interrupts.run(dry_run(job_of(known), console.say, console.say)))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    return FINISHED


def interrupted(given: Mapping[str, Any]) -> str:
    """The state after an interrupted run."""
    return f"{saved_answers(given)}; run the same command again to resume"
