"""Writes report.html: what an output is like, its images, and the last run, in one file."""

from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from vllm_annotate.report.about import Say, language_of, recipe_in_words, time_of
from vllm_annotate.report.cards import cards_that_fit, filters_of
from vllm_annotate.report.charts import duration
from vllm_annotate.report.figures import gpu_rows, server_rows
from vllm_annotate.report.gallery import Example, choose_rows, with_images
from vllm_annotate.report.rendering import render
from vllm_annotate.report.report import Report
from vllm_annotate.report.summary import chunk_names, stand_ins
from vllm_annotate.report.text import text_of
from vllm_annotate.report.words import translator
from vllm_annotate.results.provenance import made_by
from vllm_annotate.storage.atomic import replacing
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.shard import shards_folder
from vllm_annotate.storage.workspace import Workspace
from vllm_annotate.telemetry.bottleneck import TITLES

THUMBNAIL_SIDE = 320
FIRST_CARDS = 8  # before "show all"
MOST_BARS = 20
TITLE = "Annotations of …"
Pairs = list[tuple[str, int]]


def write_page(workspace: Workspace, image_root: ImageRoot, report: Report, charts: Sequence[str]) -> None:
    """Replaces report.html. Reads rows and images: run it in a thread."""
    examples = with_images(choose_rows(workspace), image_root, THUMBNAIL_SIDE)
    with replacing(workspace.page) as file:
        title = translator(language_of(report))(TITLE).replace("…", workspace.output.name)
        file.write(page(report, charts, examples, title, shards_folder(workspace.output).name))


def page(report: Report, charts: Sequence[str], examples: Iterable[Example], title: str, shards: str = "") -> bytes:
    """The HTML page; `shards` is the folder with the reports of the shards.

    The template escapes everything except the charts, which are our own markup.
    """
    language, run = language_of(report), report.last
    say = translator(language)
    cards, left_out = cards_that_fit(examples)
    return render(
        "report.html.j2",
        language,
        title=text_of(title),
        shards=shards,
        report=report,
        run=run,
        quality=_quality(report),
        when=time_of(run.started),
        time_of=time_of,
        idle=time_of(report.started) if report.last_run else "",
        made_with=recipe_in_words(report, say),
        failed_chunks=chunk_names(report.failed_chunks),
        verdict=run.bottleneck,
        shares=[(say(TITLES[kind]), f"{share:.0%}") for kind, share in run.bottleneck.shares.items()],
        figures=_figures(report, say),
        estimate=run.estimate,
        estimated=_estimated(run, say),
        run_figures=_run_figures(run, say),
        stand_ins=stand_ins(run),
        makers=made_by(report.made_by),
        tables=[rows for rows in (gpu_rows(run.telemetry), server_rows(run.telemetry)) if len(rows) > 1],
        charts=[Markup(chart) for chart in charts],  # noqa: S704 - their texts are escaped
        filters=filters_of(cards),
        cards=cards,
        first_cards=FIRST_CARDS,
        left_out=left_out,
    )


def _quality(report: Report) -> dict[str, Any]:
    """What the template shows about the quality of the whole output."""
    quality = report.quality_of_output
    images, answers = _images(report), quality.get("answers", 0)
    return {
        "sample": f"of a sample of {answers:,} answers" if answers < images else "",
        "answers": answers,
        "objects": quality.get("objects", 0),
        "areas": quality["areas"],
        "more_names": max(0, quality.get("distinct_names", 0) - len(quality["names"])),
        "names": _most(quality["names"]),
        "flags": _most(quality["flags"]),
        "stages": _most(quality["parse_stages"]),
        "failures": _most(report.failures),
        "objects_an_image": _objects_an_image(quality.get("objects_an_image", {})),
    }


def _most(counts: dict[str, int]) -> Pairs:
    return [(text_of(name, 120), count) for name, count in list(counts.items())[:MOST_BARS]]


def _objects_an_image(counts: dict[str, int]) -> Pairs:
    """Counts of images by number of objects, from 0 to 10 and more."""
    up_to: dict[str, int] = {}
    for number, count in counts.items():
        name = number if int(number) < 10 else "10 +"
        up_to[name] = up_to.get(name, 0) + count
    return list(up_to.items())


def _images(report: Report) -> int:
    return report.output.images if report.output else report.images.already_done + report.images.answered


def _figures(report: Report, say: Say) -> list[tuple[str, str]]:
    """Of the whole output."""
    quality = report.quality_of_output
    answers = quality.get("answers", 0)
    without = quality["parse_stages"].get("failed", 0)
    return [
        (say("images annotated"), f"{_images(report):,}"),
        (say("failed"), f"{report.images.failed + report.failures_left_alone:,}"),
        (say("flagged"), _share(quality.get("flagged", 0), answers)),
        (say("without annotation"), _share(without, answers)),
        (say("objects an image"), f"{quality.get('objects', 0) / answers if answers else 0:.1f}"),
        (say("different names"), f"{quality.get('distinct_names', 0):,}"),
    ]


def _estimated(run: Report, say: Say) -> list[tuple[str, str]]:
    """What the images that the run left out will take."""
    pairs = []
    for each in run.estimate.figures() if run.estimate else ():
        name, unit = (f"tokens of {each.name}", "") if each.unit == "tokens" else (each.name, each.unit)
        number, _, size = each.low.rpartition(" ")
        low = number if size.isalpha() and each.high.endswith(f" {size}") else each.low  # 22 to 24 million
        pairs.append((f"{say(name)}: {say(low)} {say('to')} {say(each.high)}", f"{say(each.likely)} {unit}".rstrip()))
    return pairs


def _share(count: int, of: int) -> str:
    percent = 100 * count / of if of else 0.0
    return "0 %" if not count else f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %"


def _run_figures(run: Report, say: Say) -> list[tuple[str, str]]:
    images, tokens, seconds = run.images, run.tokens, run.annotating_seconds
    return [
        (say("answered"), f"{images.answered:,}"),
        (say("failed"), f"{images.failed:,}"),
        (say("already answered"), f"{images.already_done:,}"),
        (say("images per second"), f"{run.images_per_second:.3g}"),
        (say("tokens per second"), f"{tokens.completion / seconds if seconds else 0:,.0f}"),
        (say("took"), duration(run.seconds)),
    ]
