"""A comparison as text: rows of tables for the terminal and the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_annotate.evaluation.tables import (
    IN_A_TERMINAL,
    TITLES,
    Rows,
    aligned,
    counted,
    notes_markdown,
    notes_text,
    with_interval,
)
from vllm_annotate.printable import printable
from vllm_annotate.report import markdown
from vllm_annotate.storage.locations import name_of


def change_rows(figures: Mapping[str, Any], most: int) -> Rows:
    """What changed, by name; header first."""
    rows = [["name", "in A", "in B", "lost", "gained", "moved"]]
    for each in figures["by_name"][:most]:
        counts = (each[key] for key in ("output", "with", "lost", "gained", "moved"))
        rows.append([each["name"] or "(no name)", *(f"{count:,}" for count in counts)])
    return rows


def against_truth_rows(figures: Mapping[str, Any]) -> Rows:
    """The scores of both; header first."""
    both = figures["output"], figures["with"]
    rows = [["", "A", "B"]]
    for at in both[0]["f1"]:
        for name, title in TITLES.items():
            cells = (with_interval(each[name][at], each["intervals"][name][at]) for each in both)
            rows.append([f"{title} at IoU {at}", *cells])
    cells = (with_interval(each["mean_iou"], each["intervals"]["mean_iou"]) for each in both)
    return [*rows, ["mean IoU", *cells]]


def compared_images(figures: Mapping[str, Any]) -> str:
    """What was compared, and what is in one output only."""
    images = figures["images"]
    text = f"{counted(images['compared'], 'image')} compared"
    for which, key in (("A", "output_only"), ("B", "with_only")):
        if images[key]:
            text += f"; in {which} alone: {images[key]:,}"
    return text


def verdict_text(against: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict, and what it rests on."""
    difference, interval = against["f1_difference"], against["f1_difference_interval"]
    evidence = f"{counted(against['images']['scored'], 'image')} of {name_of(against['file'])}"
    if difference is not None and interval:
        evidence = (
            f"F1 at IoU 0.5 changes by {difference:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f}), on {evidence}"
        )
    text = against["verdict"]
    return text[:1].upper() + text[1:], evidence + "."


def comparison_text(figures: Mapping[str, Any]) -> str:
    """A comparison for the terminal."""
    names = change_rows(figures, IN_A_TERMINAL)
    more = len(figures["by_name"]) + figures["names_left_out"] - len(names) + 1
    parts = [
        f"A is {figures['output']}, B is {figures['with']}: {compared_images(figures)}.",
        f"{_agreement(figures)}\n{_boxes(figures['boxes'])}",
        aligned(names) if len(names) > 1 else "",
        f"(more names in the JSON or on the page: {more:,})" if more else "",
    ]
    notes = list(figures["notes"])
    if figures["truth"]:
        said, evidence = verdict_text(figures["truth"])
        parts += [aligned(against_truth_rows(figures["truth"])), f"{said}. {evidence}"]
        notes += figures["truth"]["notes"]
    parts.append(notes_text(notes))
    return "\n\n".join(part for part in parts if part)


def comparison_sentence(figures: Mapping[str, Any]) -> str:
    """`labeled.jsonl and other.jsonl: agreement 0.812 (0.790–0.834), 200 images compared`, and the verdict."""
    both = " and ".join(name_of(figures[which]) for which in ("output", "with"))
    agreement = with_interval(figures["agreement"], figures["agreement_interval"])
    verdict = f"; {figures['truth']['verdict']}" if figures["truth"] else ""
    return printable(f"{both}: agreement {agreement}, {compared_images(figures)}{verdict}")


def comparison_markdown(figures: Mapping[str, Any], files: Sequence[Path | str]) -> str:
    """A comparison as an artifact; `files` have the rest."""
    names = change_rows(figures, IN_A_TERMINAL)
    parts = [
        f"A is {markdown.code(figures['output'])}, B is {markdown.code(figures['with'])}: {compared_images(figures)}.",
        f"{_agreement(figures)} {_boxes(figures['boxes'])}",
        notes_markdown(figures["notes"]),
    ]
    if figures["truth"]:
        said, evidence = verdict_text(figures["truth"])
        parts += [
            f"**{markdown.plain(said)}.** {markdown.plain(evidence)}",
            markdown.table(against_truth_rows(figures["truth"])) + "\nIn brackets: 95 % intervals over images.",
            notes_markdown(figures["truth"]["notes"]),
        ]
    parts.append(markdown.table(names) if len(names) > 1 else "")
    parts.append(f"All names and the images that differ most: {', '.join(markdown.code(str(file)) for file in files)}")
    return "\n\n".join(part for part in parts if part)


def _agreement(figures: Mapping[str, Any]) -> str:
    return f"Agreement: mean F1 {with_interval(figures['agreement'], figures['agreement_interval'])} at IoU 0.5."


def _boxes(boxes: Mapping[str, int]) -> str:
    return (
        f"Boxes: {boxes['output']:,} in A, {boxes['with']:,} in B; {boxes['kept']:,} kept, {boxes['moved']:,} moved, "
        f"{boxes['lost']:,} lost, {boxes['gained']:,} gained."
    )
