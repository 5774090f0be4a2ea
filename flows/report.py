"""A run → report.json, the summary artifact and the sentence of its final state."""

from typing import Any

from flows.plan import Plan
from flows.run import Run
from flows.store import Merged

NAMED_CHUNKS = 10  # in a sentence; report.json has them all


def summarise(run: Run, plan: Plan, merged: Merged, *, seconds: float, failed_chunks: list[str]) -> dict[str, Any]:
    """The content of `report.json`: counts of images, failures by kind, rates, and who answered.

    `images.answered` counts the rows that came into the output, those that an interrupted run had answered included;
    `already_done` those that it had before. Rates and tokens are of this run alone.
    """
    tally = run.annotator.tally
    starts = {keeper.replica.url: {"starts": keeper.starts} for keeper in run.keepers}
    done_before = plan.counts.distinct - merged.answered - merged.failures.total()
    return {
        "images": {
            "input": plan.counts.input,
            "distinct": plan.counts.distinct,
            "already_done": done_before,
            "answered": merged.answered,
            "answered_before_an_interruption": merged.answered - tally.answered,
            "without_caption": tally.without_caption,
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
        "seconds": round(seconds, 3),
        "images_per_second": round(tally.answered / seconds, 3) if seconds else 0.0,
        "tokens": {"prompt": tally.prompt_tokens, "completion": tally.completion_tokens},
        "quality": merged.quality.summary(),
        "recipe": run.recipe_fingerprint,
        "family": run.recipe_settings["family"],
        "model": run.model,
        "endpoints": list(run.versions),
        "servers": {
            url: version | run.annotator.endpoint_counts()[url] | starts.get(url, {})
            for url, version in run.versions.items()
        },
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
    if images["without_caption"]:
        parts.append(f"{images['without_caption']} asked without a caption")
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
        ("Answered", images["answered"]),
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
    quality = report["quality"]
    counted = [
        ("Failure", "Images", report["failures"]),
        ("Answers read as", "Images", quality["parse_stages"]),
        ("Flag", "Images", quality["flags"]),
        ("Most frequent names", "Objects", quality["names"]),
        ("Where boxes lie", "Objects", quality["areas"]),
    ]
    return text + "".join(_table(*table) for table in counted)


def _table(what: str, of: str, counts: dict[str, int]) -> str:
    """A Markdown table of counts, nothing for none. What stands in it may come from a model: it is text, no markup."""
    if not counts:
        return ""
    rows = "".join(f"| {_plain(name)} | {count} |\n" for name, count in counts.items())
    return f"\n| {what} | {of} |\n|---|---|\n{rows}"


def _plain(text: str) -> str:
    return "".join(
        f"&#{ord(letter)};" if letter in "<>&|`*_[]()!\\#$~" else letter for letter in " ".join(text.split())
    )
