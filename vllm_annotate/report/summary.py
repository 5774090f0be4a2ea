"""A run → the content of report.json, and the sentence of its final state."""

from datetime import UTC, datetime, timedelta
from typing import Any

from vllm_annotate.inputs.plan import Plan
from vllm_annotate.pipeline.recording import Telemetry
from vllm_annotate.pipeline.session import Run
from vllm_annotate.report.charts import duration
from vllm_annotate.report.figures import telemetry_figures
from vllm_annotate.results.merge import Merged
from vllm_annotate.results.provenance import made_by, maker, makers_in

NAMED_CHUNKS = 10  # in a sentence; report.json has them all


def summarise(
    run: Run, plan: Plan, merged: Merged, telemetry: Telemetry, *, seconds: float, failed_chunks: list[str]
) -> dict[str, Any]:
    """The content of `report.json`: counts of images, failures by kind, rates, who answered, and what held back.

    `images.answered` counts the rows that came into the output, those that an interrupted run had answered included;
    `already_done` those that it had before. Tokens are of this run alone, and so is the rate, of the time in which
    images were annotated; `seconds` has the start of servers, the plan and the merge too.
    """
    tally, annotating = run.annotator.tally, telemetry.seconds
    starts = {keeper.replica.url: {"starts": keeper.starts} for keeper in run.keepers}
    started = started_before(seconds)
    done_before = plan.counts.distinct - merged.answered - merged.failures.total()
    own = maker(run.recipe_fingerprint, run.recipe_settings, run.model, run.versions, started)
    return {
        "images": {
            "input": plan.counts.input,
            "distinct": plan.counts.distinct,
            "already_done": done_before,
            "answered": merged.answered,
            "answered_before_an_interruption": max(0, merged.answered - tally.answered),
            "without_caption": tally.without_caption,
            "failed": merged.failures.total(),
            "annotations_error": merged.annotations_error,
        },
        "skipped_lines": {
            "malformed": plan.counts.malformed,
            "without_path": plan.counts.without_path,
            "duplicates": plan.counts.duplicates,
            "broken_in_output": plan.counts.broken_in_output,
        },
        "failures": dict(merged.failures.most_common()),
        "failures_left_alone": merged.left_alone,
        "failed_chunks": failed_chunks,
        "started": started,
        "seconds": round(seconds, 3),
        "annotating_seconds": round(annotating, 3),
        "images_per_second": round(tally.answered / annotating, 3) if annotating else 0.0,
        "tokens": {"prompt": tally.prompt_tokens, "completion": tally.completion_tokens},
        "quality": merged.quality.summary(),
        "recipe": run.recipe_fingerprint,
        "made_by": made_by(makers_in(run.workspace.report), [own] if merged.answered else []),
        "family": run.recipe_settings["family"],
        "model": run.model,
        "endpoints": list(run.versions),
        "servers": {
            url: version | run.annotator.endpoint_counts()[url] | starts.get(url, {})
            for url, version in run.versions.items()
        },
        "bottleneck": telemetry.bottleneck.verdict().as_dict(),
        "telemetry": telemetry_figures(telemetry),
    }


def started_before(seconds: float) -> str:
    """When something began that has just ended: ISO 8601, UTC."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def counts_by_name(report: dict[str, Any]) -> list[tuple[str, str, dict[str, int]]]:
    """(what is counted, in which unit, how many of each) for people; what never occurred is left out."""
    quality = report["quality"]
    tables = [
        ("Failure", "Images", report["failures"]),
        ("Answers read as", "Images", quality["parse_stages"]),
        ("Flag", "Images", quality["flags"]),
        ("Most frequent names", "Objects", quality["names"]),
        ("Where boxes lie", "Objects", quality["areas"]),
    ]
    return [table for table in tables if table[2]]


def stand_ins(report: dict[str, Any]) -> list[str]:
    """Endpoints that are no model."""
    return [url for url, version in report["servers"].items() if version.get("stand_in")]


def live_figures(run: Run, plan: Plan, seconds: float) -> dict[str, Any]:
    """What can be said while the run goes on, by what it is called."""
    tally = run.annotator.tally
    rate = tally.images_per_second()
    left = max(0, plan.rows - tally.done)
    tokens = f"{tally.prompt_tokens / max(1, seconds):.0f} / {tally.completion_tokens / max(1, seconds):.0f}"
    return {
        "Images of the input": plan.counts.distinct,
        "Had an answer before": plan.counts.already_done + tally.settled_before,
        "Answered": tally.answered,
        "Failed": ", ".join(f"{count} {kind}" for kind, count in tally.failures.most_common()) or 0,
        "Left": left,
        "Images per second": f"{rate:.1f}",
        "Time left": duration(left / rate) if rate else "not known yet",
        "Tokens per second (prompt / completion)": tokens,
        "In flight": f"{run.annotator.in_flight} of at most {run.annotator.pool.limit}",
    }


def sentence(report: dict[str, Any]) -> str:
    """The run in one line: what was answered, what failed and why."""
    images = report["images"]
    earlier = images["answered_before_an_interruption"]
    parts = [f"{images['answered']} answered" + (f" ({earlier} of them before an interruption)" if earlier else "")]
    if images["already_done"]:
        parts.append(f"{images['already_done']} had answers before")
    if images["failed"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report["failures"].items())
        parts.append(f"{images['failed']} failed ({kinds})")
    else:
        parts.append("0 failed")
    if report["failures_left_alone"]:
        parts.append(f"{report['failures_left_alone']} failures of other kinds were left alone")
    if images["without_caption"]:
        parts.append(f"{images['without_caption']} asked without a caption")
    if images["annotations_error"]:
        parts.append(f"{images['annotations_error']} answers hold no annotation")
    text = f"{images['distinct']} images: " + ", ".join(parts)
    return text + (f"; failed chunks: {chunk_names(report['failed_chunks'])}" if report["failed_chunks"] else "")


def chunk_names(failed_chunks: list[str]) -> str:
    """The first of them; report.json has all."""
    more = f" and {len(failed_chunks) - NAMED_CHUNKS} more" if len(failed_chunks) > NAMED_CHUNKS else ""
    return ", ".join(failed_chunks[:NAMED_CHUNKS]) + more
