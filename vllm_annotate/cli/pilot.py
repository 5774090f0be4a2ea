"""`vllm-annotate pilot`: annotates a random sample into an output of its own, and estimates the rest."""

from collections.abc import Mapping
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import job_fields, job_options, run_options
from vllm_annotate.cli.options import Option, command, option
from vllm_annotate.cli.run import run_work
from vllm_annotate.cli.sweep import run_sweep
from vllm_annotate.cli.work import FINISHED_WITH_FAILURES, Work, saved_answers
from vllm_annotate.errors import UsageError

EPILOGUE = (
    "Takes the options of annotate; without --limit and --sample, a sample of 200 images. The answers of --output "
    "labeled.jsonl go into labeled.pilot.jsonl, with failures, report and page beside it; the estimate is in "
    "labeled.pilot.report.json. annotate with the same recipe takes the answers of the pilot. Of a folder, labeled, "
    "the pilot is the folder labeled-pilot, from at most 20 of the files, and its answers stay there.\n\n"
    "With --sweep, each variant of the file is a pilot of the same sample, without Prefect, in "
    "labeled.sweep/NAME.jsonl, or of a folder in labeled.sweep/NAME; labeled.sweep.html "
    "and .json compare what a good box costs with each.\n\n"
    "Exit codes: those of annotate."
)


def app() -> App:
    """The command's options."""
    text = "Annotate a random sample into an output of its own, and estimate what the rest will take."
    return command("pilot", text, [*job_options(), *run_options(), *sweep_options()], EPILOGUE)


def sweep_options() -> list[Option]:
    """Options of a sweep."""
    return [
        option("sweep", "YAML file with variants to compare, each with a name and fields of server and recipe."),
        option("truth", "With --sweep, rows with image_path and objects, or a COCO file, to measure the quality; else "
               "the reviewed rows of --output, or how far the variants agree."),
        option("json", "With --sweep, print the figures as JSON.", bool),
    ]  # fmt: skip


def run(given: Mapping[str, Any], console: Console, interrupts: Interrupts) -> int:
    """Runs the pilot; returns the exit code."""
    from vllm_annotate.pipeline.pilot import estimate_in_words, pilot_fields

    if given.get("sweep"):
        return run_sweep(given, console, interrupts)
    if alone := [flag for flag in ("truth", "json") if given.get(flag)]:
        raise UsageError(f"--{alone[0]} belongs to a sweep: add --sweep, or leave it out")
    fields = pilot_fields(job_fields(given))
    code = run_work(Work(fields), console, interrupts, without_prefect=bool(given.get("without_prefect")))
    if code <= FINISHED_WITH_FAILURES:
        console.show(estimate_in_words(fields["output"]))
    return code


def interrupted(given: Mapping[str, Any]) -> str:
    """The state after an interrupted pilot."""
    from vllm_annotate.pipeline.pilot import pilot_fields

    if given.get("sweep"):
        return "all answers so far are saved; run the same command again to resume"
    try:
        return f"{saved_answers(pilot_fields(job_fields(given)))}; run the same command again to resume"
    except UsageError:
        return "nothing was written"
