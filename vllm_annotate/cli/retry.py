"""`vllm-annotate retry`: retries the images in the failures file, with the settings of the original run."""

from collections.abc import Mapping
from typing import Any, get_args

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import fields_after_run, run_options, server_options
from vllm_annotate.cli.options import command, fields, option
from vllm_annotate.cli.run import run_work
from vllm_annotate.cli.work import Work, saved_answers
from vllm_annotate.errors import FailureKind, UsageError
from vllm_annotate.job import SELECTING, Job

NOT_HERE = ("input", "shard", "error_budget", *SELECTING)  # fields of a job that a retry sets itself
KINDS = get_args(FailureKind)


def app() -> App:
    """The command's options."""
    text = "Retry the images in the failures file of an output. Only --output is required."
    kinds = option("kinds", f"Only failures of these kinds: {', '.join(KINDS)}. (default: all)", list)
    of_job = fields(Job, but=("server", "recipe", *NOT_HERE))
    return command("retry", text, [*of_job, kinds, *server_options(), *run_options()])


def run(given: Mapping[str, Any], console: Console, interrupts: Interrupts) -> int:
    """Retries the images; returns the exit code."""
    kinds = _kinds(given.get("kinds") or [])
    of_run = [name for name in Job.model_fields if name not in NOT_HERE]
    known = fields_after_run(given, of_run, input=given.get("output"), error_budget=1)
    return run_work(Work(known, kinds), console, interrupts, without_prefect=bool(given.get("without_prefect")))


def interrupted(given: Mapping[str, Any]) -> str:
    """The state after an interrupted retry."""
    return f"{saved_answers(given)}; run the same command again to resume"


def _kinds(given: list[str]) -> list[str]:
    """Splits `timeout,server`. Raises UsageError for an unknown kind."""
    kinds = [kind.strip() for text in given for kind in text.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"--kinds {', '.join(unknown)} is unknown: use {', '.join(KINDS)}")
    return kinds
