"""Renders labeled.comparison.html: what changed, the verdict, and the images that differ most."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_annotate.evaluation.cards import COLOURS
from vllm_annotate.evaluation.comparison_tables import change_rows, compared_images, verdict_text
from vllm_annotate.evaluation.page import NAMES_ON_PAGE, more_names, rates_of, rendered
from vllm_annotate.evaluation.shown import Shown
from vllm_annotate.evaluation.tables import shown
from vllm_annotate.storage.image_roots import ImageRoot

NO_BAR = -1


def comparison_page(figures: Mapping[str, Any], images: Sequence[Shown], image_root: ImageRoot | None) -> bytes:
    """The page of a comparison. Decodes images: run it in a thread."""
    boxes, against = figures["boxes"], figures["truth"]
    named = change_rows(figures, NAMES_ON_PAGE)
    sides = [("A", "output"), ("B", "with")]
    rates = (
        [(f"{side} at IoU {at}", rates_of(against[key], at)) for at in ("0.5", "0.75") for side, key in sides]
        if against
        else []
    )
    one, other = names_of(figures["output"], figures["with"])
    return rendered(
        images,
        image_root,
        title=f"{one} and {other}",
        subtitle=f"A is {one}, B is {other}: {compared_images(figures)}",
        figures=[
            ("agreement: mean F1 at IoU 0.5", shown(figures["agreement"])),
            ("boxes in A", f"{boxes['output']:,}"),
            ("boxes in B", f"{boxes['with']:,}"),
            *((f"{kind}{MEANING[kind]}", f"{boxes[kind]:,}") for kind in ("kept", "moved", "lost", "gained")),
        ],
        verdict=verdict_text(against) if against else None,
        notes=[*figures["notes"], *(against["notes"] if against else [])],
        rates_title="Scores against the truth",
        rates=rates,
        tables=[("Changes by name", named, NO_BAR)] if len(named) > 1 else [],
        more_names=more_names(figures, named),
        gallery_title="Images that differ most",
        legend=[(kind, COLOURS[kind]) for kind in ("lost", "gained", "moved", "kept")],
        dashed="A",
        solid="B",
        nothing_to_show="Both outputs have the same boxes.",
    )


def names_of(one: str, other: str) -> tuple[str, str]:
    """The names of two files, with as many of their folders as it takes to tell them apart."""
    parts = [Path(path).parts for path in (one, other)]
    for count in range(1, max(map(len, parts))):
        names = [Path(*each[-count:]).as_posix() for each in parts]
        if names[0] != names[1]:
            return names[0], names[1]
    return one, other


MEANING = {"kept": "", "moved": ": IoU under 0.9", "lost": ": in A only", "gained": ": in B only"}
