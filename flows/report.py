"""A run → report.json, the summary artifact and the sentence of its final state."""

from typing import Any

from flows.plan import Plan
from flows.run import Run
from flows.store import Merged

NAMED_CHUNKS = 10  # in a sentence; report.json has them all


def summarise(run: Run, plan: Plan, merged: Merged, *, seconds: float, failed_chunks: list[str]) -> dict[str, Any]:
    """The content of `report.json`: counts of images, failures by kind, rates, and who answered.

    `images.answered` counts this run's answers; `already_done` those that the output had before.
    """
    tally = run.annotator.tally
    done_before = plan.counts.distinct - merged.answered - merged.failures.total()
    return {
        "images": {
            "input": plan.counts.input,
            "distinct": plan.counts.distinct,
            "already_done": done_before,
            "answered": merged.answered,
            "failed": merged.failures.total(),
            "annotations_error": merged.annotations_error,
        },
        "skipped_lines": {
            "malformed": plan.counts.malformed,
            "without_path": plan.counts.without_path,
            "duplicates": plan.counts.duplicates,
        },
        "failures": dict(merged.failures.most_common()),
        "failed_chunks": failed_chunks,
        "flags": dict(tally.flags.most_common()),
        "requests_answered": tally.answered,
        "objects": tally.objects,
        "seconds": round(seconds, 3),
        "images_per_second": round(tally.answered / seconds, 3) if seconds else 0.0,
        "tokens": {"prompt": tally.prompt_tokens, "completion": tally.completion_tokens},
        "recipe": run.recipe_fingerprint,
        "model": run.model,
        "endpoints": list(run.versions),
        "servers": run.versions,
    }


def sentence(report: dict[str, Any]) -> str:
    """The run in one line: what was answered, what failed and why."""
    images = report["images"]
    parts = [f"{images['answered']} answered"]
    if images["already_done"]:
        parts.append(f"{images['already_done']} had answers before")
    if images["failed"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report["failures"].items())
        parts.append(f"{images['failed']} failed ({kinds})")
    else:
        parts.append("0 failed")
    if images["annotations_error"]:
        parts.append(f"{images['annotations_error']} answers hold no annotation")
    text = f"{images['distinct']} images: " + ", ".join(parts)
    failed_chunks = report["failed_chunks"]
    if failed_chunks:
        more = f" and {len(failed_chunks) - NAMED_CHUNKS} more" if len(failed_chunks) > NAMED_CHUNKS else ""
        text += f"; failed chunks: {', '.join(failed_chunks[:NAMED_CHUNKS])}{more}"
    return text


def markdown(report: dict[str, Any], output: str) -> str:
    """The summary artifact."""
    images, tokens = report["images"], report["tokens"]
    rows = [
        ("Distinct images", images["distinct"]),
        ("Had an answer before", images["already_done"]),
        ("Answered in this run", images["answered"]),
        ("Failed", images["failed"]),
        ("Answers without an annotation", images["annotations_error"]),
        ("Images per second", report["images_per_second"]),
        ("Tokens (prompt / completion)", f"{tokens['prompt']} / {tokens['completion']}"),
        ("Model", f"`{report['model']}`"),
        ("Recipe", f"`{report['recipe']}`"),
        ("Output", f"`{output}`"),
    ]
    text = "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)
    if stand_ins := [url for url, version in report["servers"].items() if version.get("stand_in")]:
        text = f"**The answers come from a stand-in, not from a model** ({', '.join(stand_ins)}).\n\n" + text
    if report["failures"]:
        text += "\n| Failure | Images |\n|---|---|\n"
        text += "".join(f"| {kind} | {count} |\n" for kind, count in report["failures"].items())
    return text
