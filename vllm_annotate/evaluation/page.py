"""Renders labeled.evaluation.html: scores with intervals, tables, and the worst images with the boxes of both sides."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_annotate.evaluation.cards import COLOURS, cards_of, filters_of
from vllm_annotate.evaluation.shown import Shown
from vllm_annotate.evaluation.tables import TITLES, image_counts, name_rows, shown, size_rows
from vllm_annotate.report.rendering import render
from vllm_annotate.report.text import text_of
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.locations import name_of

NAMES_ON_PAGE = 50
F1_COLUMN = 1  # of the tables by size and by name, drawn as a bar


def evaluation_page(figures: Mapping[str, Any], worst: Sequence[Shown], image_root: ImageRoot | None) -> bytes:
    """The page of an evaluation. Decodes images: run it in a thread."""
    images = figures["images"]
    named = name_rows(figures, NAMES_ON_PAGE)
    return rendered(
        worst,
        image_root,
        title=f"Evaluation of {name_of(figures['output'])}",
        subtitle=f"against {name_of(figures['truth'])}: {image_counts(images)}",
        figures=[
            ("F1 at IoU 0.5", shown(figures["f1"]["0.5"])),
            ("F1 at IoU 0.75", shown(figures["f1"]["0.75"])),
            ("mean IoU of matched boxes", shown(figures["mean_iou"])),
            ("images scored", f"{images['scored']:,}"),
            ("boxes in the truth", f"{figures['boxes']['truth_boxes']:,}"),
            ("boxes answered", f"{figures['boxes']['answer_boxes']:,}"),
        ],
        notes=figures["notes"],
        rates_title="Scores",
        rates=[(f"IoU {at} or more", rates_of(figures, at)) for at in figures["f1"]],
        tables=[("By size of box", size_rows(figures), F1_COLUMN), ("By name", named, F1_COLUMN)],
        more_names=more_names(figures, named),
        gallery_title="Images with the lowest F1",
        legend=[(kind, COLOURS[kind]) for kind in ("missed", "extra", "found", "ignored")],
        dashed="the truth",
        solid="the answer",
        nothing_to_show="Every box of the truth was found, and no box too many.",
    )


def rendered(images: Sequence[Shown], image_root: ImageRoot | None, score: str = "F1", **data: Any) -> bytes:
    """The page with a gallery of these images, whose F1 is called `score`, and the template's other data."""
    cards, left_out = cards_of(images, image_root, score)
    filters = filters_of(cards)
    data["legend"] = [(kind, colour) for kind, colour in data["legend"] if kind in dict(filters)]
    data["title"], data["subtitle"] = text_of(data["title"]), text_of(data["subtitle"])
    return render("evaluation.html.j2", "en", **data, cards=cards, left_out=left_out, filters=filters)


def more_names(figures: Mapping[str, Any], named: Sequence[Any]) -> str:
    """What a table without all names says; `named` are its rows."""
    more = len(figures["by_name"]) + figures["names_left_out"] - len(named) + 1
    return f"More names, in the JSON file or too rare to be listed: {more:,}." if more else ""


def rates_of(figures: Mapping[str, Any], at: str) -> list[dict[str, Any]]:
    """Precision, recall and F1 at a threshold."""
    return [rate(title, figures[name][at], figures["intervals"][name][at]) for name, title in TITLES.items()]


def rate(name: str, value: float | None, interval: Sequence[float] | None) -> dict[str, Any]:
    """A bar with the interval over it."""
    low, high = interval or (value or 0, value or 0)
    return {
        "name": name,
        "text": shown(value),
        "interval": f"{shown(low)}–{shown(high)}" if interval else "",
        **{side: round(100 * (number or 0), 1) for side, number in (("at", value), ("low", low), ("high", high))},
    }
