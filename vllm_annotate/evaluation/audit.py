"""What other answers to a sample say about an output: agreement, calibrated if some truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.agreement import Agreement, agreement_of, right_boxes
from vllm_annotate.evaluation.calibration import FEWEST, calibrated
from vllm_annotate.evaluation.evaluate import MOST_NAMES
from vllm_annotate.evaluation.matching import Floats, areas
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.scores import SIZES, f1_of, mean_interval, number_of
from vllm_annotate.evaluation.shown import MOST_ITEMS, MOST_SHOWN, Item, Shown, corners
from vllm_annotate.evaluation.truth import Truth
from vllm_annotate.report.text import text_of

ELSEWHERE = "not in the output"  # a box of another answer
CONFIRMED = 0.5  # the share of the other answers from which on a box is shown as confirmed


@dataclass(frozen=True)
class Audit:
    """What is known: figures for JSON, a row for each audited image, and images to show."""

    figures: dict[str, Any]
    agreement: Agreement
    doubtful: list[Shown]

    def rows(self) -> Any:
        """Yields the rows of labeled.audit.jsonl, in the order of the sample."""
        found, of_boxes, of_images = self.agreement, self.agreement.of_boxes, self.agreement.of_images
        for path, image in found.first.index.items():
            if found.answers[image]:
                rows = range(int(found.boxes.starts[image]), int(found.boxes.starts[image + 1]))
                yield {
                    "image_path": path,
                    "agreement": number_of(of_images[image]),
                    "answers": int(found.answers[image]),
                    "objects": [
                        {"name": found.names.texts[found.boxes.name[row]], "bbox": _numbers(found.boxes.box[row]),
                         "agreement": number_of(of_boxes[row])}
                        for row in rows
                    ],
                }  # fmt: skip


def audit(first: Path, others: Sequence[Path], names: Names, truth: Truth | None = None) -> Audit:
    """Compares the sampled rows with the other answers to them. Raises UsageError if there are none."""
    found = agreement_of(first, others, names)
    asked = found.answers > 0
    if not asked.any():
        raise UsageError(f"no sampled image was answered again: see the reports in {first.parent}")
    per_image = found.of_images[asked]
    notes = list(found.notes)
    calibration = None
    if truth is not None:
        calibration, more = _calibration(first, found, truth)
        notes += more
    images = _doubtful(found)
    figures = {
        "images": {"audited": int(asked.sum()), "sampled": len(asked)},
        "boxes": int(found.is_asked.sum()),
        "agreement": number_of(per_image.mean()),
        "agreement_interval": mean_interval(per_image),
        "by_size": {
            size: {"agreement": number_of(f1_of(counts)), "boxes": boxes}
            for size, counts, boxes in zip(SIZES, found.tally.by_size, _boxes_by_size(found), strict=True)
        },
        "by_name": _by_name(found),
        "calibration": calibration,
        "doubtful": [{"image_path": each.image_path, "agreement": number_of(each.f1)} for each in images],
        "notes": notes,
    }
    return Audit(figures, found, images)


def _calibration(first: Path, found: Agreement, truth: Truth) -> tuple[dict[str, Any] | None, list[str]]:
    right, known, notes = right_boxes(first, found, truth)
    asked = found.is_asked
    if (known & asked).sum() < FEWEST:
        return None, [*notes, f"the truth knows fewer than {FEWEST} boxes of the sample: nothing is calibrated"]
    image, of_boxes = found.image[asked], found.of_boxes[asked]
    images = np.flatnonzero(found.answers > 0)
    place = np.searchsorted(images, image)
    return calibrated(of_boxes, place, len(images), right[asked], known[asked]), notes


def _boxes_by_size(found: Agreement) -> list[int]:
    """How many boxes of the images with other answers are of each size."""
    pixels = (areas(found.boxes.box) * found.unit[found.image])[found.is_asked]
    return [int(((pixels >= low) & (pixels <= high)).sum()) for low, high in SIZES.values()]


def _by_name(found: Agreement) -> list[dict[str, Any]]:
    """The agreement about each name that the output has, the least first; of equal ones the most frequent first."""
    f1 = f1_of(found.tally.by_name)
    boxes = np.bincount(found.boxes.name[found.is_asked], minlength=len(f1))
    listed = np.argsort(-boxes, kind="stable")[:MOST_NAMES]
    listed = listed[boxes[listed] > 0]
    order = listed[np.argsort(f1[listed], kind="stable")]
    return [
        {"name": text_of(found.names.texts[name], 120), "agreement": number_of(f1[name]), "boxes": int(boxes[name])}
        for name in order
    ]


def _doubtful(found: Agreement) -> list[Shown]:
    """The images with the least agreement, the worst first."""
    of_images, paths = found.of_images, list(found.first.index)
    order = np.argsort(of_images, kind="stable")[:MOST_SHOWN]  # NaN comes last
    extras = found.extras(int(image) for image in order if of_images[image] < 1)
    return [_shown(found, paths[image], image, more) for image, more in extras.items()]


def _shown(found: Agreement, path: str, image: int, extras: Sequence[tuple[int, Floats]]) -> Shown:
    answers, of_boxes = int(found.answers[image]), found.of_boxes
    items = []
    for row in range(int(found.boxes.starts[image]), int(found.boxes.starts[image + 1])):
        kind = "confirmed" if of_boxes[row] >= CONFIRMED else "doubtful"
        note = f"in {int(found.found[row])} of {answers}"
        name = found.names.texts[found.boxes.name[row]]
        items.append(Item(kind, name, None, corners(found.boxes.box[row]), note=note))
    for number, box in extras:
        items.append(Item(ELSEWHERE, found.names.texts[number], corners(box)))
    items.sort(key=lambda item: ("doubtful", ELSEWHERE, "confirmed").index(item.kind))
    errors = sum(item.kind != "confirmed" for item in items)
    return Shown(path, float(found.of_images[image]), errors, items[:MOST_ITEMS], max(0, len(items) - MOST_ITEMS))


def _numbers(box: Floats) -> list[float]:
    return [int(side) if side.is_integer() else round(side, 3) for side in corners(box)]
