"""Scores an output against a truth: in all, by name, by size of box, and the images that are worst."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_annotate.evaluation.answers import Answers
from vllm_annotate.evaluation.joining import Join
from vllm_annotate.evaluation.matching import Booleans, Floats
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.scores import COLUMNS, SIZES, Tally, intervals, scores, summed
from vllm_annotate.evaluation.shown import Shown, Worst
from vllm_annotate.evaluation.truth import Truth
from vllm_annotate.evaluation.truth_file import read_truth
from vllm_annotate.report.text import text_of

MOST_NAMES = 200  # listed, the most frequent ones


@dataclass(frozen=True)
class Evaluation:
    """What is known of an output: figures for JSON, and images to show."""

    figures: dict[str, Any]
    worst: list[Shown]


@dataclass(frozen=True)
class Measured:
    """The counts of each image of the truth, and whether the output has it."""

    join: Join
    tally: Tally
    worst: list[Shown]
    counts: Floats
    seen: Booleans

    @property
    def scored(self) -> Floats:
        """The counts of the images that are in both."""
        return self.counts[self.seen]


def evaluate(output: Path, truth: Path, synonyms: Path | None = None) -> Evaluation:
    """Reads both files and scores the images that are in both. Raises UsageError."""
    names = Names(synonyms)
    found = measure(Answers(output, names), read_truth(truth, names), names)
    found.join.check_common()
    whole = summed(found.scored)
    by_name, names_left_out = named_scores(found.tally.by_name, names.texts)
    figures = {
        "output": str(output),
        "truth": str(truth),
        "images": {
            "scored": len(found.scored), "truth_only": found.join.truth_only, "output_only": found.join.output_only,
        },
        "boxes": boxes_counted(whole),
        **scores(whole),
        "intervals": intervals(found.scored),
        "by_size": {
            size: boxes_counted(counts) | scores(counts)
            for size, counts in zip(SIZES, found.tally.by_size, strict=True)
        },
        "by_name": by_name,
        "names_left_out": names_left_out,
        "worst": [
            {"image_path": each.image_path, "f1": round(each.f1, 6), "missed": each.names("missed"),
             "extra": each.names("extra")}
            for each in found.worst
        ],
        "notes": [*found.join.notes(), *_unknown_names(found.tally.by_name)],
    }  # fmt: skip
    return Evaluation(figures, found.worst)


def measure(answers: Answers, truth: Truth, names: Names) -> Measured:
    """Counts what matches, image by image, in the order of the truth; nothing if no image is in both."""
    join, tally, worst = Join(answers, truth), Tally(), Worst(names.texts)
    counts: Any = np.zeros((len(join.seen), COLUMNS), np.float32)  # half the memory; exact for each image
    for batch in join.batches():
        by_image, matches = tally.add(batch, len(names.texts))
        counts[batch.images] = by_image
        worst.offer(batch, by_image, matches[0])
    return Measured(join, tally, worst.images(), counts, np.frombuffer(join.seen, np.uint8) > 0)


def boxes_counted(counts: Floats) -> dict[str, int]:
    """The boxes behind the counts: those of the truth and those of the answers."""
    hit, extra, missed = (round(float(count)) for count in counts[:3])
    return {"truth_boxes": hit + missed, "answer_boxes": hit + extra}


def _unknown_names(by_name: Floats) -> list[str]:
    unknown = round(float(by_name[by_name[:, 0] + by_name[:, 2] == 0, 1].sum()))
    what = "answered boxes with a name that the truth of these images never has, which count as extra (see --synonyms)"
    return [f"{what}: {unknown:,}"] if unknown else []


def named_scores(by_name: Floats, texts: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The scores of each name, the most frequent in the truth first, and how many names are left out."""
    truths, answers = by_name[:, 0] + by_name[:, 2], by_name[:, 0] + by_name[:, 1]
    order = np.lexsort((np.arange(len(by_name)), -answers, -truths))
    order = order[(truths + answers)[order] > 0]
    listed = [
        {"name": text_of(texts[name], 120)} | boxes_counted(by_name[name]) | scores(by_name[name])
        for name in order[:MOST_NAMES]
    ]
    return listed, len(order) - len(listed)
