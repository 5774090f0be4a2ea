"""Renders report.html: a summary and a gallery in one file, without network access or scripts."""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from vllm_annotate.printable import printable
from vllm_annotate.report.boxes import boxes_of
from vllm_annotate.report.charts import COLOURS, duration
from vllm_annotate.report.figures import gpu_rows, server_rows
from vllm_annotate.report.gallery import Example, choose_rows, failure_of, marks_of, with_images
from vllm_annotate.report.report import Report
from vllm_annotate.report.summary import chunk_names, counts_by_name, stand_ins
from vllm_annotate.report.text import text_of
from vllm_annotate.results.provenance import made_by
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.locations import ImageRoot
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.telemetry.bottleneck import TITLES

MOST_BYTES, BYTES_A_BOX, BYTES_A_CARD = 9_000_000, 400, 1500  # of all cards; per box; per card, beside its texts
MOST_FILTERS = 40
THUMBNAIL_SIDE = 320
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def write_page(workspace: Workspace, image_root: ImageRoot, report: Report, charts: Sequence[str]) -> None:
    """Replaces report.html. Reads rows and images: run it in a thread."""
    examples = with_images(choose_rows(workspace), image_root, THUMBNAIL_SIDE)
    with replacing(workspace.page) as file:
        title = f"Annotations of {workspace.output.name}"
        file.write(page(report, charts, examples, title, shards_folder(workspace.output).name))


def page(report: Report, charts: Sequence[str], examples: Iterable[Example], title: str, shards: str = "") -> bytes:
    """The HTML page; `shards` is the folder with the reports of the shards.

    The template escapes everything except the charts, which are our own markup.
    """
    cards, left_out = _cards_that_fit(examples)
    counts = Counter(mark for card in cards for mark in card["marks"]).most_common(MOST_FILTERS)
    filters = [("all", len(cards)), *sorted(counts)]
    numbers = {name: number for number, (name, _) in enumerate(filters)}
    for card in cards:
        card["filters"] = [numbers[mark] for mark in card["marks"] if mark in numbers]
    text = TEMPLATES.get_template("page.html.j2").render(
        title=text_of(title),
        shards=shards,
        report=report,
        failed_chunks=chunk_names(report.failed_chunks),
        verdict=report.bottleneck,
        shares=[(TITLES[kind], f"{share:.0%}") for kind, share in report.bottleneck.shares.items()],
        figures=_figures(report),
        stand_ins=stand_ins(report),
        makers=made_by(report.made_by),
        tables=[rows for rows in (gpu_rows(report.telemetry), server_rows(report.telemetry)) if len(rows) > 1],
        counts=[
            (what, [(text_of(name, 120), count) for name, count in by_name.items()])
            for what, _, by_name in counts_by_name(report)
        ],
        charts=[Markup(chart) for chart in charts],  # noqa: S704 - their texts are escaped
        cards=cards,
        left_out=left_out,
        filters=filters,
    )
    return printable(text).encode()  # all of it: names of models, servers and GPUs too


def _figures(report: Report) -> list[tuple[str, str]]:
    images, tokens, seconds = report.images, report.tokens, report.annotating_seconds
    return [
        ("answered", f"{images.answered:,}"),
        ("failed", f"{images.failed:,}"),
        ("already answered", f"{images.already_done:,}"),
        ("without annotation", f"{images.annotations_error:,}"),
        ("images per second", f"{report.images_per_second:.3g}"),
        ("tokens per second", f"{tokens.completion / seconds if seconds else 0:,.0f}"),
        ("took", duration(report.seconds)),
    ]


def _cards_that_fit(examples: Iterable[Example]) -> tuple[list[dict[str, Any]], int]:
    """The cards that fit into MOST_BYTES, and the number of those that do not."""
    cards, left_out, used = [], 0, 0
    for example in examples:
        card = _card(example)
        size = _size(card)
        if used + size <= MOST_BYTES:
            cards.append(card)
            used += size
        else:
            left_out += 1
    return cards, left_out


def _card(example: Example) -> dict[str, Any]:
    """The template's data for one image."""
    row = example.row
    failed = failure_of(row) if "failure" in row else None
    marks = [f"failed: {failed['kind']}"] if failed else marks_of(row) or ["nothing flagged"]
    annotations = row.get("annotations")
    rationale = annotations.get("rationale") if isinstance(annotations, dict) else None
    return {
        "path": text_of(row.get("image_path")),
        "caption": text_of(row.get("caption")),
        "rationale": text_of(rationale),
        "raw": text_of(row.get("vlm_output")),
        "failure": failed["message"] if failed else "",
        "marks": list(dict.fromkeys(marks)),
        "jpeg": base64.b64encode(example.jpeg).decode() if example.jpeg else "",
        "size": example.size,
        "why_not": text_of(example.why_not),
        "boxes": [
            {
                "name": box.name or "(no name)",
                "x": round(box.x1, 1),
                "y": round(box.y1, 1),
                "width": round(box.x2 - box.x1, 1),
                "height": round(box.y2 - box.y1, 1),
                "colour": COLOURS[number % len(COLOURS)],
            }
            for number, box in enumerate(boxes_of(row))
        ],
    }


def _size(card: dict[str, Any]) -> int:
    """An upper bound for the bytes of a card in the page."""
    texts = [card[name] for name in ("path", "path", "caption", "rationale", "raw", "failure", "why_not")]
    texts += [*card["marks"], *(box["name"] for box in card["boxes"])]
    escaped = sum(len(escape(text).encode(errors="replace")) for text in texts)
    return escaped + len(card["jpeg"]) + BYTES_A_BOX * len(card["boxes"]) + BYTES_A_CARD
