"""A pilot: a run of a sample, in an output of its own, whose report estimates what the rest will take."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm_annotate.report.estimate import FEWEST, Estimate
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.locations import location, read_object
from vllm_annotate.storage.output_paths import PILOT, names_folder
from vllm_annotate.storage.workspace import Workspace

SAMPLE = 200  # images, if none are selected


def pilot_output(output: Path | str) -> Path | str:
    """The output of a pilot, beside the one it is for: `labeled.pilot.jsonl`, or of a folder `labeled-pilot`.

    Raises UsageError for an invalid one.
    """
    if isinstance(output, str):
        output = output.rstrip("/")
        return output + PILOT if names_folder(output) else f"{output.removesuffix('.jsonl')}.pilot.jsonl"
    return Workspace.at(output).pilot.output


def pilot_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a pilot's job, from those of the job it is for."""
    found = dict(fields)
    with suppress(ValueError):  # of an invalid location, which the job refuses
        found["output"] = pilot_output(location(found.get("output")))
    with_sample(found)
    return found


def with_sample(fields: dict[str, Any]) -> None:
    """Selects a sample if nothing is selected. 0 selects all, which is no pilot."""
    if all(str(fields.get(name) or 0).strip() in {"0", ""} for name in ("limit", "sample")):
        fields |= {"limit": 0, "sample": SAMPLE}


def read_estimate(report: Path | str) -> Estimate | None:
    """The estimate in a report.json; None if there is none. Raises OSError for a store that does not answer."""
    content = read_object(report) if isinstance(report, str) else report.read_bytes()
    found = json_object(content.decode(errors="replace")) or {}
    # A run with nothing to do keeps the report of the last one that had something.
    fields = found.get("estimate") or (found.get("last_run") or {}).get("estimate")
    return None if fields is None else Estimate.model_validate(fields)


def estimate_in_words(output: Path | str) -> str:
    """What the report of a pilot's output says about the rest."""
    path = Workspace.at(output).report if isinstance(output, Path) else None
    estimate = read_estimate(path if path is not None else f"{str(output).removesuffix('.jsonl')}.report.json")
    if estimate is None:
        return (
            f"No estimate: it needs {FEWEST} images or more that one run answered without an interruption, and others "
            "that are not selected; a larger --sample adds to both"
        )
    return "\n".join(
        [
            f"Estimate for the other {estimate.images:,} images, from {estimate.measured_on:,} of this pilot:",
            *(f"  {line}" for line in estimate.sentences()),
        ]
    )


def as_markdown(words: str) -> str:
    """Indented lines as a list."""
    return words.replace("\n  ", "\n\n- ", 1).replace("\n  ", "\n- ")
