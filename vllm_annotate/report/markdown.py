"""Renders the artifacts for the Prefect UI. Text from a model or a file is escaped, never markup."""

import base64
import re
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vllm_annotate.printable import printable
from vllm_annotate.report.boxes import boxes_of
from vllm_annotate.report.charts import COLOURS, data_uri
from vllm_annotate.report.figures import gpu_rows, server_rows
from vllm_annotate.report.gallery import Example, failure_of
from vllm_annotate.report.report import Proof, Report, Seen, Tokens
from vllm_annotate.report.summary import counts_by_name, stand_ins
from vllm_annotate.report.text import text_of
from vllm_annotate.telemetry.bottleneck import TITLES, Verdict

LONGEST = 300  # characters of an outside text
LINKED = re.compile(r"(?<=://)|(?<=@)|(?<=www)(?=\.)", re.IGNORECASE)


def summary(report: Report, output: str) -> str:
    """Counts, rates and the quality of the answers; the rates are of the last run that had something to do."""
    images, quality, run = report.images, report.quality_of_output, report.last
    rows = [
        ("Distinct images", f"{images.distinct:,}"),
        ("Already answered", f"{images.already_done:,}"),
        ("Answered", f"{images.answered:,}"),
        ("Failed", f"{images.failed:,}"),
        ("Answers without an annotation", f"{images.annotations_error:,}"),
        ("Flagged in the output", f"{quality.get('flagged', 0):,} of {quality.get('answers', 0):,}"),
        ("Images per second", f"{run.images_per_second:,.3g}"),
        ("Tokens per second (prompt / completion)", _per_second(run.tokens, run.annotating_seconds)),
        ("Tokens (prompt / completion)", f"{run.tokens.prompt:,} / {run.tokens.completion:,}"),
        ("Model", code(report.model)),
        ("Recipe", code(report.recipe)),
        ("Output", code(output)),
    ]
    text = table([["", ""], *([name, value] for name, value in rows)], escaped=True)
    if urls := stand_ins(run):
        text = f"**The answers come from a stand-in, not from a model** ({plain(', '.join(urls))}).\n\n" + text
    return text + "".join("\n" + counts(*table) for table in counts_by_name(report))


def live_summary(figures: dict[str, Any], output: str) -> str:
    """The summary during the run."""
    rows = [[name, str(value)] for name, value in figures.items()]
    return table([["", ""], *rows, ["Output", code(output)]], escaped=True)


def gpus(figures: Seen, charts: Sequence[str]) -> str:
    """Tables of GPUs and servers, the charts, and what could not be measured."""
    parts = [f"- {plain(note)}\n" for note in figures.missing]
    if figures.gpus:
        parts.append("\n" + table(gpu_rows(figures)))
    if figures.servers:
        parts.append("\n" + table(server_rows(figures)))
    parts += [f"\n![chart]({data_uri(chart)})\n" for chart in charts]
    return "".join(parts)


def failures(by_kind: dict[str, int], examples: Sequence[dict[str, Any]]) -> str:
    """Failure counts by kind, and a few examples of each."""
    if not by_kind:
        return "No image failed.\n"
    rows = [["Kind", "Image", "Why"]]
    rows += [[failure_of(row)["kind"], text_of(row.get("image_path")), failure_of(row)["message"]] for row in examples]
    return counts("Failure", "Images", by_kind) + ("\n" + table(rows) if len(rows) > 1 else "")


def bottleneck(verdict: Verdict) -> str:
    """The bottleneck, the evidence and the remedy."""
    shares = [["Bottleneck", "Share of the time"]]
    shares += [[TITLES[kind], f"{share:.0%}"] for kind, share in verdict.shares.items()]
    return (
        f"**{verdict.title[:1].upper()}{verdict.title[1:]}**\n\n{plain(verdict.evidence)}\n\n"
        f"What to do: {plain(verdict.advice)}\n\n{table(shares)}"
    )


def proof(proofs: Mapping[str, Proof]) -> str:
    """What each endpoint showed before the first image, and since."""
    parts = [
        f"**{plain(url)}**\n\n" + "".join(f"- {plain(said)}\n" for said in each.text) for url, each in proofs.items()
    ]
    return "\n".join(parts) or "No server was asked yet.\n"


def samples(examples: Sequence[Example]) -> str:
    """Images with their boxes, captions and rationales."""
    return "\n".join(_sample(example) for example in examples) or "No answers yet.\n"


def _sample(example: Example) -> str:
    boxes = boxes_of(example.row)
    names = ", ".join(plain(box.name) for box in boxes) or "no objects"
    rationale = example.row.get("annotations") or {}
    said = rationale.get("rationale", "") if isinstance(rationale, dict) else ""
    picture = f"![boxes]({data_uri(_with_boxes(example))})\n\n" if example.jpeg else f"({plain(example.why_not)})\n\n"
    caption = plain(text_of(example.row.get("caption")))
    path = plain(text_of(example.row.get("image_path")))
    return f"**{path}** {caption}\n\n{picture}{names}. {plain(text_of(said))}\n\n---\n"


def _with_boxes(example: Example) -> str:
    """An SVG of the image with its boxes; the browser draws names in any script."""
    width, height = example.size
    image = base64.b64encode(example.jpeg or b"").decode()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="11"><image width="{width}" height="{height}" '
        f'href="data:image/jpeg;base64,{image}"/>'
    ]
    for number, box in enumerate(boxes_of(example.row)):
        x1, y1, x2, y2 = box.x1 * width / 1000, box.y1 * height / 1000, box.x2 * width / 1000, box.y2 * height / 1000
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" '
            f'stroke="{colour}" stroke-width="2"/><text {_beside(x1, x2, width)} y="{max(11.0, y1 - 3):.1f}" '
            f'fill="{colour}" stroke="#fff" stroke-width="3" paint-order="stroke">{escape(box.name[:40])}</text>'
        )
    return "".join([*parts, "</svg>"])


def _beside(x1: float, x2: float, width: float) -> str:
    """Aligns a name with the side of its box that has more room."""
    return f'x="{x1 + 2:.1f}"' if x1 + x2 < width else f'x="{x2 - 2:.1f}" text-anchor="end"'


def table(rows: Sequence[Sequence[str]], *, escaped: bool = False) -> str:
    """A Markdown table, header first; escapes the cells unless they are `escaped`."""
    head, *body = ["| " + " | ".join(row if escaped else map(plain, row)) + " |\n" for row in rows]
    return head + "|" + "---|" * len(rows[0]) + "\n" + "".join(body)


def counts(what: str, of: str, by_name: dict[str, int]) -> str:
    """A table of counts."""
    return table([[what, of], *([name, f"{count:,}"] for name, count in by_name.items())])


def plain(text: str) -> str:
    """Escapes an outside text for Markdown and HTML.

    Uses backslashes, as the older of Prefect's two UIs shows character references literally, and a zero-width space
    where a UI would turn an address into a link.
    """
    short = " ".join(printable(text).split())
    short = short if len(short) <= LONGEST else short[:LONGEST] + "…"
    short = LINKED.sub("\u200b", short)
    return "".join(f"\\{letter}" if letter in string.punctuation else letter for letter in short)


def code(text: str) -> str:
    """Escapes an outside text and formats it as code."""
    return f"<code>{plain(text)}</code>"


def _per_second(tokens: Tokens, seconds: float) -> str:
    if not seconds:
        return "0 / 0"
    return f"{tokens.prompt / seconds:,.0f} / {tokens.completion / seconds:,.0f}"
