"""Writes labeled.sweep.json and labeled.sweep.html, and the same table for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vllm_annotate.evaluation.report import write_files
from vllm_annotate.evaluation.tables import Rows, aligned, counted, notes_text, with_interval
from vllm_annotate.report.charts import short
from vllm_annotate.report.rendering import render
from vllm_annotate.report.scatter import Point, scatter
from vllm_annotate.report.text import text_of
from vllm_annotate.storage.locations import name_of

MEANING = {
    "truth": "F1 at IoU 0.5 against the truth",
    "reviewed": "F1 at IoU 0.5 against the reviewed rows",
    "agreement": "agreement: mean F1 at IoU 0.5 with each of the others",
}
LEGEND = "* no other variant is as good in fewer {unit}. In brackets: 95 % intervals."
AGREEMENT = "agreement is not truth: variants that make the same mistakes agree; for a truth, review a sample"


def write_sweep(figures: Mapping[str, Any], output: Path) -> list[Path]:
    """Replaces the JSON and the page of a sweep; returns their paths."""
    return write_files(output, "sweep", figures, sweep_page(figures))


def sweep_rows(figures: Mapping[str, Any]) -> Rows:
    """Each variant's quality, hours and price; header first."""
    unit = figures["unit"]
    rows = [["variant", "quality", f"{unit} in all", "good boxes per image", f"{unit} per million good boxes"]]
    return rows + [
        [
            f"{each['name']}{' *' if each['front'] else ''}",
            with_interval(each["quality"], each["quality_interval"]),
            _range(each["cost"]),
            f"{each['good_boxes_an_image']:.2f}",
            _range(each["price"]),
        ]
        for each in figures["variants"]
    ]


def sweep_text(figures: Mapping[str, Any]) -> str:
    """A sweep for the terminal."""
    parts = [
        f"Quality is {MEANING[figures['quality']]}. Hours are for all {counted(figures['images'], 'image')}.",
        f"{aligned(sweep_rows(figures))}\n{LEGEND.format(unit=figures['unit'])}",
        "\n".join(f"{name} has no figures: {why}" for name, why in figures["failed"].items()),
        notes_text(_notes(figures)),
    ]
    return "\n\n".join(part for part in parts if part)


def sweep_page(figures: Mapping[str, Any]) -> bytes:
    """The page of a sweep: a table, and a chart of quality over hours."""
    points = [
        Point(
            each["name"],
            (each["cost"]["low"], each["cost"]["likely"], each["cost"]["high"]),
            (each["quality_interval"][0], each["quality"], each["quality_interval"][1]),
            each["front"],
        )
        for each in figures["variants"]
        if each["cost"] and each["quality"] is not None and each["quality_interval"]
    ]
    return render(
        "sweep.html.j2",
        "en",
        title=text_of(f"Sweep for {name_of(figures['output'])}"),
        meaning=MEANING[figures["quality"]],
        images=counted(figures["images"], "image"),
        rows=sweep_rows(figures),
        legend=LEGEND.format(unit=figures["unit"]),
        chart=Markup(scatter(points, f"{figures['unit']} in all", "quality")),  # noqa: S704 - its texts are escaped
        failed=[(name, text_of(why)) for name, why in figures["failed"].items()],
        notes=_notes(figures),
    )


def _notes(figures: Mapping[str, Any]) -> list[str]:
    return [*figures["notes"], *([AGREEMENT] if figures["quality"] == "agreement" else [])]


def _range(of: Mapping[str, float] | None) -> str:
    if not of:
        return "–"
    likely, low, high = (_three_digits(of[which]) for which in ("likely", "low", "high"))
    return f"{likely} ({low}–{high})"


def _three_digits(value: float) -> str:
    """Also those that are 0, so that the ends of a range look alike."""
    return f"{value:#.3g}" if 0.001 <= value < 99.95 else short(value)
