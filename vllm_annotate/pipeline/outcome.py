"""Builds the report of a run, and the figures shown during it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from vllm_annotate.inputs.listing import output_name, shown
from vllm_annotate.pipeline.recording import Telemetry
from vllm_annotate.pipeline.session import Run
from vllm_annotate.pipeline.work import Work
from vllm_annotate.report.charts import duration
from vllm_annotate.report.estimate import Estimate, estimate
from vllm_annotate.report.figures import telemetry_figures
from vllm_annotate.report.report import Images, Proof, Report, Seen, SkippedLines, Tokens
from vllm_annotate.results.files import Files
from vllm_annotate.results.finished import read_finished
from vllm_annotate.results.merged import Merged
from vllm_annotate.results.provenance import made_by, maker, makers_in
from vllm_annotate.results.written import written_files
from vllm_annotate.storage.packed import names_of


def outcome(run: Run, work: Work, merged: Merged, telemetry: Telemetry, *, seconds: float) -> Report:
    """The report of a run that has just merged."""
    tally, annotating, counts = run.annotator.tally, telemetry.seconds, work.counts
    seen = telemetry_figures(telemetry)
    starts = {keeper.replica.url: {"starts": keeper.starts} for keeper in run.keepers}
    started = started_before(seconds)
    own = maker(run.recipe_fingerprint, run.recipe_settings, run.model, run.versions, started)
    return Report(
        images=Images(
            input=counts.input,
            distinct=counts.distinct,
            not_selected=work.not_selected,
            already_done=counts.distinct - merged.answered - merged.failures.total(),
            answered=merged.answered,
            answered_before_an_interruption=max(0, merged.answered - tally.answered - counts.taken),
            taken_from_pilot=counts.taken,
            without_caption=tally.without_caption,
            failed=merged.failures.total(),
            annotations_error=merged.annotations_error,
        ),
        skipped_lines=SkippedLines.counted(counts),
        failures=dict(merged.failures.most_common()),
        failures_left_alone=merged.left_alone,
        failed_chunks=work.failed_chunks,
        started=started,
        seconds=round(seconds, 3),
        annotating_seconds=round(annotating, 3),
        images_per_second=round(tally.answered / annotating, 3) if annotating else 0.0,
        tokens=Tokens(prompt=tally.prompt_tokens, completion=tally.completion_tokens),
        images_sent={way: tally.sent[way] for way in ("original", "jpeg")},
        quality=merged.quality.summary(),
        recipe=run.recipe_fingerprint,
        made_by=made_by(makers_in(run.workspace.report), [own] if merged.answered else []),
        family=run.recipe_settings["family"],
        model=run.model,
        endpoints=list(run.versions),
        servers={
            url: version | run.annotator.endpoint_counts()[url] | starts.get(url, {})
            for url, version in run.versions.items()
        },
        proof=proofs(run),
        bottleneck=telemetry.bottleneck.verdict(),
        telemetry=seen,
        input=shown(run.job.input),
        files=work.files,
        estimate=estimated(run, work, counts.distinct - merged.failures.total(), seen, seconds, annotating),
    )


def estimated(
    run: Run, work: Work, rows: int, seen: Seen, seconds: float, annotating_seconds: float
) -> Estimate | None:
    """What the images that were not selected will take, if any; `rows` are the selected ones in the output."""
    if not work.not_selected:  # nearly always: what is below looks at each file of an output
        return None
    watts = [gpu["power_watts_mean"] for gpu in seen.gpus.values()]
    size, written = written_bytes(run.files.output, rows)
    return estimate(
        work.not_selected,
        run.annotator.tally.done_at,
        in_flight=sum(endpoint.most_in_flight for endpoint in run.annotator.pool.endpoints),
        seconds=seconds,
        annotating_seconds=annotating_seconds,
        bytes_per_row=size / max(1, written),
        gpus=len(seen.gpus),
        watts=sum(power for power in watts if power is not None) if any(watts) else None,
    )


def written_bytes(output: Files, rows: int) -> tuple[int, int]:
    """The size of an output on this machine, and of how many rows; `rows` are those of one that is a file."""
    workspace = output.workspace
    sizes = {path: path.stat().st_size for path in written_files(workspace.answers)}
    if workspace.is_folder:  # of one in a bucket, a few are here
        entries = read_finished(workspace, output.output_version).values()
        rows = sum(
            entry.rows
            for entry in entries
            if any(workspace.answers / name in sizes for name in names_of(output_name(entry.name)))
        )
    return sum(sizes.values()), rows


def proofs(run: Run) -> dict[str, Proof]:
    """What the endpoints showed so far, by URL."""
    findings = run.proving.findings
    return {url: Proof(**finding.model_dump(), text=finding.sentences()) for url, finding in findings.items()}


def started_before(seconds: float) -> str:
    """The time so many seconds ago: ISO 8601, UTC."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def live_figures(run: Run, work: Work, seconds: float) -> dict[str, Any]:
    """The figures for the live summary, by label."""
    tally = run.annotator.tally
    rate = tally.images_per_second()
    left = max(0, work.rows - tally.done)
    tokens = f"{tally.prompt_tokens / max(1, seconds):,.0f} / {tally.completion_tokens / max(1, seconds):,.0f}"
    return {
        "Images of the input": f"{work.counts.distinct:,}",
        "Already answered": f"{work.counts.already_done + tally.settled_before:,}",
        "Answered": f"{tally.answered:,}",
        "Failed": ", ".join(f"{count} {kind}" for kind, count in tally.failures.most_common()) or 0,
        "Left": f"{left:,}",
        "Images per second": f"{rate:.1f}",
        "Time left": duration(left / rate) if rate else "unknown",
        "Tokens per second (prompt / completion)": tokens,
        "In flight": f"{run.annotator.in_flight} of at most {run.annotator.pool.limit}",
    }
