"""Compares two outputs of one input: where they agree, what changed, and, with a truth, which one is better."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_annotate.evaluation.answers import Answers, read_as_truth
from vllm_annotate.evaluation.evaluate import MOST_NAMES, boxes_counted, measure
from vllm_annotate.evaluation.joining import Join
from vllm_annotate.evaluation.matching import Floats
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.scores import (
    Tally,
    f1_of,
    f1_of_images,
    interval,
    intervals,
    mean_interval,
    number_of,
    resampled,
    scores,
    summed,
)
from vllm_annotate.evaluation.shown import Kinds, Shown, Worst
from vllm_annotate.evaluation.truth_file import read_truth
from vllm_annotate.report.text import text_of

SAME_IOU = 0.9  # matched boxes that overlap less have moved
CHANGES = ("lost", "gained", "moved")
KINDS = Kinds(matched="kept", truth_only="lost", answer_only="gained", moved="moved", least=SAME_IOU)
BEST_KNOWN = 0.999  # the highest probability that 1,000 resamples can show


@dataclass(frozen=True)
class Comparison:
    """What is known of two outputs: figures for JSON, and images to show."""

    figures: dict[str, Any]
    most_different: list[Shown]


def compare(one: Path, other: Path, truth: Path | None = None, synonyms: Path | None = None) -> Comparison:
    """Reads both outputs, A and B, and compares the images that are in both. Raises UsageError."""
    names = Names(synonyms)
    found = _difference(one, other, names)
    figures = found.figures
    figures["truth"] = None if truth is None else _against_truth(one, other, truth, names)
    return found


def _difference(one: Path, other: Path, names: Names) -> Comparison:
    first, second = Answers(one, names, "--output"), Answers(other, names, "--with")
    join = Join(second, read_as_truth(first), first.named)
    tally, worst, agreement = Tally(), Worst(names.texts, KINDS), []
    moved: Any = np.zeros(0)
    for batch in join.batches():
        by_image, matches = tally.add(batch, len(names.texts))
        worst.offer(batch, by_image, matches[0])
        agreement.append(f1_of_images(by_image))
        is_moved = (matches[0].truth >= 0) & (matches[0].iou < SAME_IOU)
        counts = np.bincount(batch.answer.name[is_moved], minlength=len(names.texts))
        moved = counts + np.pad(moved, (0, len(counts) - len(moved)))
    join.check_common()
    by_name = np.column_stack([tally.by_name[:, :3], moved])
    hit, gained, lost, moved_in_all = (round(float(count)) for count in by_name.sum(axis=0))
    listed, left_out = _by_name(by_name, names)
    per_image = np.concatenate(agreement)
    images = worst.images()
    figures = {
        "output": str(one),
        "with": str(other),
        "images": {
            "compared": len(per_image), "output_only": join.truth_only, "with_only": join.output_only,
        },
        "agreement": number_of(per_image.mean()),
        "agreement_interval": mean_interval(per_image),
        "boxes": {
            "output": hit + lost, "with": hit + gained, "kept": hit - moved_in_all, "moved": moved_in_all,
            "lost": lost, "gained": gained,
        },
        "by_name": listed,
        "names_left_out": left_out,
        "most_different": [
            {"image_path": each.image_path, "f1": round(each.f1, 6), **{kind: each.names(kind) for kind in CHANGES}}
            for each in images
        ],
        "notes": [*(f"A: {note}" for note in first.notes()), *(f"B: {note}" for note in join.notes())],
    }  # fmt: skip
    return Comparison(figures, images)


def _by_name(by_name: Floats, names: Names) -> tuple[list[dict[str, Any]], int]:
    """What changed of each name, the most changes first, and how many changed names are left out."""
    hit, gained, lost, moved = by_name.T
    changes = gained + lost + moved
    order = np.lexsort((-hit, -changes))
    order = order[changes[order] > 0]
    listed = [
        {
            "name": text_of(names.texts[name], 120),
            "output": round(hit[name] + lost[name]),
            "with": round(hit[name] + gained[name]),
            "lost": round(lost[name]),
            "gained": round(gained[name]),
            "moved": round(moved[name]),
        }
        for name in order[:MOST_NAMES]
    ]
    return listed, len(order) - len(listed)


def _against_truth(one: Path, other: Path, truth: Path, names: Names) -> dict[str, Any]:
    """The scores of both on the images that both and the truth have."""
    known = read_truth(truth, names)
    first = measure(Answers(one, names, "--output"), known, names)
    second = measure(Answers(other, names, "--with"), known, names)
    for each in (first, second):
        each.join.check_common()
    both = first.seen & second.seen
    counts = first.counts[both], second.counts[both]
    sums = resampled(np.hstack(counts))
    f1 = [f1_of(each) for each in np.split(sums, 2, axis=1)]
    differences = f1[1] - f1[0]
    totals = [summed(each) for each in counts]
    own = [scores(total) | {"intervals": intervals(each)} for total, each in zip(totals, counts, strict=True)]
    better = probability(differences)
    before, after = (each["f1"]["0.5"] for each in own)
    return {
        "file": str(truth),
        "images": {"scored": int(both.sum()), "truth_only": len(known.index) - int(both.sum())},
        "boxes": boxes_counted(totals[0])["truth_boxes"],
        "output": own[0],
        "with": own[1],
        "f1_difference": None if None in (before, after) else round(after - before, 6),
        "f1_difference_interval": interval(differences),
        "with_is_better": better,
        "verdict": verdict(better),
        "notes": known.notes,
    }


def probability(differences: Floats) -> float | None:
    """The share of resamples in which B is better than A; None if no resample has scores."""
    known = differences[np.isfinite(differences)]
    return number_of(((known > 0).mean() + (known >= 0).mean()) / 2) if len(known) else None


def verdict(better: float | None) -> str:
    """`B is better with probability 0.97`."""
    if better is None:
        return "the truth cannot tell: its common images have no boxes"
    if better == 0.5:
        return "A and B are equally good"
    which, chance = ("B", better) if better > 0.5 else ("A", 1 - better)
    shown = f"over {BEST_KNOWN}" if chance > BEST_KNOWN else f"{chance:.2f}"
    return f"{which} is better with probability {shown}"
