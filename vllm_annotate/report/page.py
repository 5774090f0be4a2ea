"""Writes report.html: a summary and a gallery in one file."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from vllm_annotate.report.cards import cards_that_fit, filters_of
from vllm_annotate.report.charts import duration
from vllm_annotate.report.figures import gpu_rows, server_rows
from vllm_annotate.report.gallery import Example, choose_rows, with_images
from vllm_annotate.report.rendering import render
from vllm_annotate.report.report import Report
from vllm_annotate.report.summary import chunk_names, counts_by_name, stand_ins
from vllm_annotate.report.text import text_of
from vllm_annotate.results.provenance import made_by
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.locations import ImageRoot
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.telemetry.bottleneck import TITLES

THUMBNAIL_SIDE = 320


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
    cards, left_out = cards_that_fit(examples)
    return render(
        "report.html.j2",
        "en",
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
        filters=filters_of(cards),
        cards=cards,
        left_out=left_out,
    )


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
