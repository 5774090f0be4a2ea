"""The steps of a run: plan → prove the servers → annotate chunks → merge → report."""

from vllm_annotate.pipeline.annotating import Logger
from vllm_annotate.pipeline.many_inputs import plan_many
from vllm_annotate.pipeline.one_input import plan_one
from vllm_annotate.pipeline.outcome import outcome
from vllm_annotate.pipeline.recording import Telemetry
from vllm_annotate.pipeline.report_page import last_charts
from vllm_annotate.pipeline.session import Run
from vllm_annotate.pipeline.work import Work
from vllm_annotate.report.about import language_of
from vllm_annotate.report.figures import telemetry_charts
from vllm_annotate.report.page import write_page
from vllm_annotate.report.report import Report, write_report
from vllm_annotate.report.whole import with_last_run, with_whole
from vllm_annotate.results.merged import Merged
from vllm_annotate.results.retry import examples_of
from vllm_annotate.telemetry.bottleneck import UNIMPORTANT
from vllm_annotate.threads import run_to_end


async def plan(run: Run, logger: Logger) -> Work:
    """Plans or resumes what the output has no answer for."""
    return await (plan_one if run.files.inputs is None else plan_many)(run, logger)


async def prove_servers(run: Run, work: Work, logger: Logger) -> None:
    """Proves every endpoint before the first image, if there is one. Raises ServerRefused if boxes would be wrong."""
    if work.rows:
        await run.proving.prove_all(logger)


async def publish_report(
    run: Run, work: Work, merged: Merged, telemetry: Telemetry, seconds: float, logger: Logger
) -> Report:
    """Writes report.json and report.html, and publishes the run's files; returns the report."""
    report = outcome(run, work, merged, telemetry, seconds=seconds)
    if not work.rows and not merged.answered:
        report = await run_to_end(with_last_run, report, run.workspace)
    report = await run_to_end(with_whole, report, run.files.output)
    write_report(run.workspace.report, report)
    try:
        idle, language = report.last_run is not None, language_of(report)
        charts = last_charts(run.workspace, report) if idle else telemetry_charts(telemetry, language)
        await run_to_end(write_page, run.workspace, run.files.image_root, report, charts)
    except Exception as error:  # the output is complete: a missing page must not fail the run
        logger.warning("Could not write report.html: %r", error)
    await run.files.publish()
    for example in examples_of(run.workspace.failures) if merged.failures else ():
        logger.info("Failed, for example: %s", example)
    if (verdict := telemetry.bottleneck.verdict()).kind not in UNIMPORTANT:
        logger.info("Bottleneck: %s (%s). What to do: %s", verdict.title, verdict.evidence, verdict.advice)
    return report
