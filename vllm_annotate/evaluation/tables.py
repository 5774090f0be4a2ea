"""Figures as text: rows of tables for the terminal, the artifact and the page."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_annotate.printable import printable
from vllm_annotate.report import markdown
from vllm_annotate.storage.locations import name_of

TITLES = {"precision": "precision", "recall": "recall", "f1": "F1"}
SCORED = ("F1", "precision", "recall", "F1 at 0.75", "mean IoU", "in truth", "answered")
IN_A_TERMINAL = 15  # names; the page has more, and the JSON all that are listed
IN_PIXELS = {"small": "small (under 32²)", "medium": "medium (to 96²)", "large": "large (over 96²)"}
Rows = list[list[str]]


def score_rows(figures: Mapping[str, Any]) -> Rows:
    """Precision, recall, F1 and mean IoU with their intervals; header first."""
    thresholds = list(figures["f1"])
    rows = [["", *(f"at IoU {threshold}" for threshold in thresholds)]]
    for name, title in TITLES.items():
        known = figures["intervals"][name]
        rows.append([title, *(with_interval(figures[name][at], known[at]) for at in thresholds)])
    mean = with_interval(figures["mean_iou"], figures["intervals"]["mean_iou"])
    return [*rows, ["mean IoU", mean, *[""] * (len(thresholds) - 1)]]


def size_rows(figures: Mapping[str, Any]) -> Rows:
    """Scores by size of box; header first."""
    return [
        ["size of box in pixels", *SCORED],
        *([IN_PIXELS[size], *_of(each)] for size, each in figures["by_size"].items()),
    ]


def name_rows(figures: Mapping[str, Any], most: int) -> Rows:
    """Scores by name; header first."""
    return [["name", *SCORED], *([each["name"] or "(no name)", *_of(each)] for each in figures["by_name"][:most])]


def _of(each: Mapping[str, Any]) -> list[str]:
    rates = [each["f1"]["0.5"], each["precision"]["0.5"], each["recall"]["0.5"], each["f1"]["0.75"], each["mean_iou"]]
    return [*map(shown, rates), f"{each['truth_boxes']:,}", f"{each['answer_boxes']:,}"]


def shown(value: float | None) -> str:
    """A rate with three digits."""
    return "–" if value is None else f"{value:.3f}"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """`0.812 (0.790–0.834)`."""
    return shown(value) + (f" ({shown(interval[0])}–{shown(interval[1])})" if interval else "")


def image_counts(images: Mapping[str, int]) -> str:
    """What was scored, and what is in one file only."""
    text = f"{counted(images['scored'], 'image')} scored"
    if images["truth_only"]:
        text += f"; in the truth alone, and so not scored: {images['truth_only']:,}"
    if images["output_only"]:
        text += f"; in the output alone: {images['output_only']:,}"
    return text


def counted(count: int, what: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def evaluation_text(figures: Mapping[str, Any]) -> str:
    """An evaluation for the terminal."""
    names = name_rows(figures, IN_A_TERMINAL)
    more = len(figures["by_name"]) + figures["names_left_out"] - len(names) + 1
    parts = [
        f"{image_counts(figures['images'])}.",
        aligned(score_rows(figures)) + "\n(in brackets: 95 % intervals over images)",
        aligned(size_rows(figures)),
        aligned(names) + (f"\n(more names in the JSON or on the page: {more:,})" if more else ""),
        notes_text(figures["notes"]),
    ]
    return "\n\n".join(part for part in parts if part)


def notes_text(notes: Sequence[str]) -> str:
    """What the reader has to know, a line each."""
    return "\n".join(f"Note: {note}." for note in notes)


def notes_markdown(notes: Sequence[str]) -> str:
    """The same as a list, for an artifact."""
    return "\n".join(f"- {markdown.plain(note)}." for note in notes)


def aligned(rows: Rows) -> str:
    """Columns for a terminal: the first to the left, numbers to the right."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [" " * (width - _width(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0] + " " * (widths[0] - _width(row[0])), *cells]).rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    """Columns that a text takes in a terminal: Chinese characters take two."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def evaluation_sentence(figures: Mapping[str, Any]) -> str:
    """`labeled.jsonl: F1 0.812 (0.790–0.834) at IoU 0.5, 200 images scored`."""
    f1 = with_interval(figures["f1"]["0.5"], figures["intervals"]["f1"]["0.5"])
    return printable(f"{name_of(figures['output'])}: F1 {f1} at IoU 0.5, {image_counts(figures['images'])}")


def evaluation_markdown(figures: Mapping[str, Any], files: Sequence[Path | str]) -> str:
    """An evaluation as an artifact; `files` have the rest."""
    parts = [
        f"{markdown.code(figures['output'])} against {markdown.code(figures['truth'])}: "
        f"{image_counts(figures['images'])}.",
        notes_markdown(figures["notes"]),
        markdown.table(score_rows(figures)) + "\nIn brackets: 95 % intervals over images.",
        markdown.table(size_rows(figures)),
        markdown.table(name_rows(figures, IN_A_TERMINAL)),
        f"All names and the worst images: {', '.join(markdown.code(str(file)) for file in files)}",
    ]
    return "\n\n".join(part for part in parts if part)
