"""`vllm-annotate pilot --sweep`: pilots of one sample with several servers and recipes, and what each costs.

Exit codes: 0 every image of every variant answered; 1 finished with failures, or variants without figures; 2 refused,
or no variant finished.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.evaluate import path_in
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import job_fields, job_of, refuse_blocks
from vllm_annotate.cli.run import logging_to, run_to_the_end
from vllm_annotate.cli.work import FINISHED, FINISHED_WITH_FAILURES
from vllm_annotate.errors import ServerFault, UsageError
from vllm_annotate.job import Job
from vllm_annotate.storage.workspace import Workspace


def run_sweep(given: Mapping[str, Any], console: Console, interrupts: Interrupts) -> int:
    """Runs each variant that is not finished, and compares them; returns the exit code."""
    from vllm_annotate.evaluation.sweep import Pilot, check_truth, sweep_figures
    from vllm_annotate.evaluation.sweep_page import sweep_text, write_sweep
    from vllm_annotate.pipeline.sweep import read_sweep

    truth = path_in(given, "truth") if given.get("truth") else None
    variants, fields = read_sweep(path_in(given, "sweep")), job_fields(given)
    refuse_blocks(fields, "a sweep runs without Prefect: write its fields there")
    workspace = _workspace(job_of(fields))
    check_truth(workspace.output, truth)
    jobs = _jobs(fields, variants, workspace.sweep)
    pilots, failed = [], {}
    for number, (name, job) in enumerate(jobs.items(), start=1):
        console.say(f"Variant {name} ({number} of {len(jobs)})")
        try:
            report = _annotate(job, console, interrupts)
        except (UsageError, ServerFault, OSError) as error:
            failed[name] = _why(error, job)
            console.say(f"Variant {name} has no figures: {failed[name]}", logging.ERROR)
        else:
            pilots.append(Pilot(name, Path(job.output), report))
    if not pilots:
        raise UsageError(f"no variant finished: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
    figures = sweep_figures(pilots, failed, workspace.output, truth)
    files = write_sweep(figures, workspace.output)
    if given.get("json"):
        console.show(json.dumps(figures, ensure_ascii=False, indent=2))
    else:
        console.show(sweep_text(figures) + "\n\n" + "\n".join(map(str, files)))
    return FINISHED_WITH_FAILURES if failed or any(each.report.images.failed for each in pilots) else FINISHED


def _workspace(job: Job) -> Workspace:
    """The workspace of the output that the sweep is for. Raises UsageError."""
    if not isinstance(job.output, Path):
        raise UsageError(f"--output {job.output!r} is a URL, and a sweep compares local files: name one, as a.jsonl")
    return Workspace.at(job.output)


def _jobs(fields: Mapping[str, Any], variants: list[Any], folder: Path) -> dict[str, Job]:
    """The job of each variant by name, all checked; creates the folder of their outputs. Raises UsageError."""
    from vllm_annotate.pipeline.sweep import variant_fields

    is_new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        jobs = {}
        for variant in variants:
            try:
                jobs[variant.name] = job_of(variant_fields(fields, variant, folder))
                Workspace.at(jobs[variant.name].output)
            except UsageError as error:
                raise UsageError(f"variant {variant.name!r} of --sweep: {error}") from None
    except UsageError:
        if is_new:
            folder.rmdir()
        raise
    return jobs


def _annotate(job: Job, console: Console, interrupts: Interrupts) -> Any:
    """The report of a variant's pilot. Raises UsageError, ServerFault and OSError."""
    from vllm_annotate.pipeline.sweep import check_same, check_sample
    from vllm_annotate.pipeline.without_prefect import annotate
    from vllm_annotate.report.summary import sentence

    check_same(job)
    with logging_to(console) as logger:
        report = run_to_the_end(annotate(job, logger), interrupts)
    console.say(sentence(report))
    if report.failed_chunks:
        raise UsageError(f"not all of the sample was asked ({sentence(report)}): run the same command again to resume")
    if not report.images.already_done + report.images.answered:
        raise UsageError(f"no image of the sample has an answer: see {Workspace.at(job.output).failures}")
    check_sample(job, report)
    return report


def _why(error: Exception, job: Job) -> str:
    from vllm_annotate.storage.disk_errors import explained

    text = explained(error, str(job.output)) if isinstance(error, OSError) else str(error)
    return " ".join(text.split())
