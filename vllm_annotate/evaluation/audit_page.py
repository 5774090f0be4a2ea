"""An audit as text, and as labeled.audit.html: agreement, calibration, and the most doubtful images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_annotate.evaluation.audit import ELSEWHERE
from vllm_annotate.evaluation.cards import COLOURS
from vllm_annotate.evaluation.page import rate, rendered
from vllm_annotate.evaluation.shown import Shown
from vllm_annotate.evaluation.tables import (
    IN_A_TERMINAL,
    IN_PIXELS,
    Rows,
    aligned,
    counted,
    notes_markdown,
    notes_text,
    shown,
    with_interval,
)
from vllm_annotate.printable import printable
from vllm_annotate.report import markdown
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.locations import name_of

NAMES_ON_PAGE = 50
AGREEMENT_COLUMN = 1  # drawn as a bar


def audit_text(figures: Mapping[str, Any]) -> str:
    """An audit for the terminal."""
    parts = [
        f"{_subtitle(figures)}.",
        f"agreement: {with_interval(figures['agreement'], figures['agreement_interval'])}",
        _calibration_text(figures["calibration"]) + "\n(in brackets: 95 % intervals over images)",
        aligned(_sizes(figures)),
        aligned(_names(figures, IN_A_TERMINAL)),
        notes_text(figures["notes"]),
    ]
    return "\n\n".join(part for part in parts if part)


def audit_sentence(figures: Mapping[str, Any]) -> str:
    """`labeled.jsonl: agreement 0.812 (0.790–0.834), 500 of 20,000 answered images, each compared with …`."""
    agreement = with_interval(figures["agreement"], figures["agreement_interval"])
    return printable(f"{name_of(figures['output'])}: agreement {agreement}, {_subtitle(figures)}")


def audit_markdown(figures: Mapping[str, Any], files: Sequence[Path]) -> str:
    """An audit as an artifact; `files` have the rest."""
    calibration = figures["calibration"]
    parts = [
        f"{markdown.code(figures['output'])}: {_subtitle(figures)}.",
        f"Agreement: {with_interval(figures['agreement'], figures['agreement_interval'])}",
        *map(markdown.plain, _calibration_text(calibration).split("\n")),
        "In brackets: 95 % intervals over images.",
        markdown.table(_map(calibration)) if calibration else "",
        notes_markdown(figures["notes"]),
        markdown.table(_sizes(figures)),
        markdown.table(_names(figures, IN_A_TERMINAL)),
        f"All names and the most doubtful images: {', '.join(markdown.code(str(file)) for file in files)}",
    ]
    return "\n\n".join(part for part in parts if part)


def audit_page(figures: Mapping[str, Any], doubtful: Sequence[Shown], image_root: ImageRoot | None) -> bytes:
    """The page of an audit. Decodes images: run it in a thread."""
    calibration = figures["calibration"]
    rates = [rate("agreement", figures["agreement"], figures["agreement_interval"])]
    tables: list[tuple[str, Rows, int]] = [
        ("By size of box", _sizes(figures), AGREEMENT_COLUMN),
        ("By name, the most doubtful first", _names(figures, NAMES_ON_PAGE), AGREEMENT_COLUMN),
    ]
    if calibration is not None:
        rates.append(rate("right boxes", calibration["precision"], calibration["precision_interval"]))
        tables.insert(0, ("Calibration", _map(calibration), AGREEMENT_COLUMN))
    more = max(0, len(figures["by_name"]) - NAMES_ON_PAGE)
    return rendered(
        doubtful,
        image_root,
        score="agreement",
        title=f"Audit of {name_of(figures['output'])}",
        subtitle=_subtitle(figures),
        figures=[
            ("agreement: mean F1 at IoU 0.5", shown(figures["agreement"])),
            ("images audited", f"{figures['images']['audited']:,}"),
            ("boxes audited", f"{figures['boxes']:,}"),
            *([("AUROC of agreement", shown(calibration["auroc"]))] if calibration else []),
        ],
        notes=figures["notes"],
        rates_title="The whole output",
        rates=[("Estimated from the sample", rates)],
        tables=tables,
        more_names=f"More names, in the JSON file: {more:,}." if more else "",
        gallery_title="The most doubtful images",
        legend=[(kind, COLOURS[kind]) for kind in ("doubtful", ELSEWHERE, "confirmed")],
        dashed="only in another answer",
        solid="the output",
        nothing_to_show="All answers agree about every box.",
    )


def _subtitle(figures: Mapping[str, Any]) -> str:
    images = figures["images"]
    asks = counted(figures["asks"], "other answer")
    return f"{images['audited']:,} of {counted(images['answered'], 'answered image')}, each compared with {asks}"


def _calibration_text(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "right boxes: unknown without a truth of some sampled images (--truth, or review some)"
    right = with_interval(calibration["precision"], calibration["precision_interval"])
    return (
        f"right boxes: {right}, calibrated with {calibration['boxes']:,} boxes whose truth is known"
        f"\nAUROC of agreement: {shown(calibration['auroc'])}"
    )


def _map(calibration: Mapping[str, Any]) -> Rows:
    rows = [[shown(each["agreement"]), shown(each["probability"]), f"{each['boxes']:,}"] for each in calibration["map"]]
    return [["agreement of a box", "probability that it is right", "boxes of the truth"], *rows]


def _sizes(figures: Mapping[str, Any]) -> Rows:
    rows = (_row(IN_PIXELS[size], each) for size, each in figures["by_size"].items())
    return [["size of box in pixels", "agreement", "boxes"], *rows]


def _names(figures: Mapping[str, Any], most: int) -> Rows:
    listed = figures["by_name"][:most]
    return [["name", "agreement", "boxes"], *(_row(each["name"] or "(no name)", each) for each in listed)]


def _row(title: str, each: Mapping[str, Any]) -> list[str]:
    return [title, shown(each["agreement"]), f"{each['boxes']:,}"]
