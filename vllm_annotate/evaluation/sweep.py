"""Compares the pilots of a sweep: how good their boxes are, what the whole input would take, and which are worth it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.answers import Answers, read_as_truth
from vllm_annotate.evaluation.evaluate import measure
from vllm_annotate.evaluation.matching import Booleans, Floats
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.scores import f1_of, f1_of_images, interval, number_of, resampled
from vllm_annotate.evaluation.truth import Truth
from vllm_annotate.evaluation.truth_file import known_truth
from vllm_annotate.report.estimate import Range
from vllm_annotate.report.report import Report

MILLION = 1_000_000
ROUGH = 1.0  # relative error of the hours from fewer images than an estimate needs: half to double
HIT, EXTRA, MISSED, MISSED_CLOSER = 0, 1, 2, 5  # columns of counts: at IoU 0.5, and at 0.75


@dataclass(frozen=True)
class Pilot:
    """A finished pilot of a sweep."""

    name: str
    output: Path
    report: Report


@dataclass(frozen=True)
class Quality:
    """How good the boxes of one pilot are. Intervals are of 95 %, from resamples of the images."""

    value: float | None  # F1 at IoU 0.5, against truth or against the other pilots
    interval: list[float | None] | None
    precision: float | None
    good_boxes: float  # an image of the sample
    good_boxes_interval: list[float | None] | None


def sweep_figures(
    pilots: Sequence[Pilot], failed: dict[str, str], output: Path, truth: Path | None = None
) -> dict[str, Any]:
    """The figures of a sweep for JSON, the lowest price of a good box first. Raises UsageError.

    `failed` says why variants have no figures; `output` is that of the job that the sweep is for.
    """
    names = Names()
    known, source = known_truth(output, truth, names)
    notes = list(known.notes) if known else []
    qualities = _against_truth(pilots, known, names, notes) if known else None
    if known and not qualities:
        notes = [f"{source} has no image of the sample, and is not used"]
    against = ("truth" if truth else "reviewed") if qualities else "agreement"
    qualities = qualities or _agreement(pilots, names)
    in_gpu_hours = all(_hours(pilot.report)[1] is not None for pilot in pilots)
    rows = [_row(each, quality, in_gpu_hours) for each, quality in zip(pilots, qualities, strict=True)]
    if against == "agreement" and len(pilots) == 1:
        notes.append("one variant alone agrees with no other: give a truth of its images, or let another one finish")
    if any(pilot.report.last.estimate is None for pilot in pilots):
        notes.append("hours from too few images, or from a sample that is all of the input, are half to double as many")
    _mark_front(rows)
    return {
        "version": 1,
        "output": str(output),
        "images": max((_images(pilot.report) for pilot in pilots), default=0),
        "quality": against,
        "truth": None if against == "agreement" else str(source),
        "unit": "GPU hours" if in_gpu_hours else "hours",
        "variants": sorted(rows, key=lambda row: row["price"]["likely"] if row["price"] else math.inf),
        "failed": failed,
        "notes": notes,
    }


def _answers(pilot: Pilot, names: Names) -> Answers:
    return Answers(pilot.output, names, f"variant {pilot.name!r}")


def _against_truth(pilots: Sequence[Pilot], truth: Truth, names: Names, notes: list[str]) -> list[Quality]:
    """Of the images in the truth that any pilot answered; those that a pilot lacks count as missed. Empty if none did.

    Adds notes about pilots that answered none of these images.
    """
    found = [measure(_answers(pilot, names), truth, names) for pilot in pilots]
    sampled: Booleans = np.logical_or.reduce([each.seen for each in found])
    if not sampled.any():
        return []
    notes += [
        f"variant {pilot.name!r} answered no image of the truth: all its boxes count as missed"
        for pilot, each in zip(pilots, found, strict=True)
        if each.join.is_empty
    ]
    starts = truth.boxes.starts
    wanted = np.concatenate([[0], np.cumsum(~truth.boxes.crowd)])
    boxes = wanted[starts[1:]] - wanted[starts[:-1]]
    qualities = []
    for each in found:
        counts = each.counts.copy()
        for column in (MISSED, MISSED_CLOSER):
            counts[~each.seen, column] = boxes[~each.seen]
        counts = counts[sampled].astype(np.float64)
        whole, drawn = counts.sum(axis=0), resampled(counts)
        f1 = [f1_of(each) for each in (whole, drawn)]
        qualities.append(
            Quality(
                number_of(f1[0]), interval(f1[1]), _share(whole[HIT], whole[HIT] + whole[EXTRA]),
                whole[HIT] / len(counts), interval(drawn[:, HIT] / len(counts)),
            )
        )  # fmt: skip
    return qualities


def _agreement(pilots: Sequence[Pilot], names: Names) -> list[Quality]:
    """Mean F1 of each pilot with each of the others, image by image; an image that it lacks has no good box."""
    read = [read_as_truth(_answers(pilot, names)) for pilot in pilots]
    images = {path: number for number, path in enumerate(dict.fromkeys(path for each in read for path in each.index))}
    f1, hits, boxes = (np.full((len(pilots), len(pilots), len(images)), np.nan) for _ in range(3))
    for one, truth in enumerate(read):
        rows = np.array([images[path] for path in truth.index], np.int64)  # in the order of the counts
        for other in range(one + 1, len(pilots)):
            found = measure(_answers(pilots[other], names), truth, names)
            hit, extra, missed = found.scored[:, :3].astype(np.float64).T
            at, shared = rows[found.seen], f1_of_images(found.scored)
            for pair, own in (((one, other), hit + missed), ((other, one), hit + extra)):
                f1[(*pair, at)], hits[(*pair, at)], boxes[(*pair, at)] = shared, hit, own
    return [_mean_agreement(*each) for each in zip(f1, hits, boxes, strict=True)]


def _mean_agreement(f1: Floats, hits: Floats, boxes: Floats) -> Quality:
    """Of one pilot's figures with each of the others, shape (pilots, images); NaN where either has no answer."""
    known = np.isfinite(f1)
    others = np.maximum(known.sum(axis=0), 1)
    mean, good, own = (np.where(known, each, 0.0).sum(axis=0) / others for each in (f1, hits, boxes))
    if not known.any():
        return Quality(None, None, None, 0.0, None)
    table = np.column_stack([mean, known.any(axis=0), good, np.ones(len(good))])
    whole, drawn = table.sum(axis=0), resampled(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = interval(drawn[:, 0] / drawn[:, 1])
    return Quality(
        _share(whole[0], whole[1]), spread, _share(good.sum(), own.sum()), whole[2] / whole[3],
        interval(drawn[:, 2] / drawn[:, 3]),
    )  # fmt: skip


def _share(part: float, whole: float) -> float | None:
    return number_of(part / whole) if whole else None


def _row(pilot: Pilot, quality: Quality, in_gpu_hours: bool) -> dict[str, Any]:
    images = pilot.report.images
    hours, gpu_hours = _hours(pilot.report)
    cost = gpu_hours if in_gpu_hours else hours
    price = _price(cost, quality, _images(pilot.report)) if cost else None
    return {
        "name": pilot.name,
        "output": str(pilot.output),
        "model": pilot.report.model,
        "recipe": pilot.report.recipe,
        "answered": images.already_done + images.answered,
        "failed": images.failed,
        "quality": quality.value,
        "quality_interval": quality.interval,
        "precision": quality.precision,
        "good_boxes_an_image": number_of(quality.good_boxes),
        "good_boxes_an_image_interval": quality.good_boxes_interval,
        "hours": hours.model_dump() if hours else None,
        "gpu_hours": gpu_hours.model_dump() if gpu_hours else None,
        "cost": cost.model_dump() if cost else None,
        "price": price.model_dump() if price else None,
        "front": False,
    }


def _images(report: Report) -> int:
    """The distinct images of the whole input."""
    return report.images.distinct + report.images.not_selected


def _hours(report: Report) -> tuple[Range | None, Range | None]:
    """Hours and GPU hours for the whole input; None if they are not known."""
    images, run = _images(report), report.last
    if run.estimate is not None:
        found = run.estimate
        hours = _of_all(found.hours, found.fixed_hours, images / found.images)
        gpus = found.gpu_hours.likely / found.hours.likely if found.gpu_hours and found.hours.likely else 0.0
        return hours, hours.scaled(gpus) if gpus else None
    if not run.images_per_second:
        return None, None
    hours = Range.around(images / run.images_per_second / 3600, ROUGH)
    gpus = len(run.telemetry.gpus)
    return hours, hours.scaled(gpus) if gpus else None


def _of_all(hours: Range, fixed: float, factor: float) -> Range:
    """The hours of more images: start, plan and merge take as long as before."""
    low, likely, high = (fixed + (each - fixed) * factor for each in (hours.low, hours.likely, hours.high))
    return Range(low=low, likely=likely, high=high)


def _price(cost: Range, quality: Quality, images: int) -> Range | None:
    """Hours for a million good boxes; the errors of both figures are independent."""
    good, bounds = quality.good_boxes, quality.good_boxes_interval
    if not (good and cost.likely and bounds):
        return None
    likely = cost.likely / (good * images) * MILLION
    low, high = (max(bound or 0.0, good / 1000) for bound in bounds)
    dearer = math.exp(math.hypot(math.log(cost.high / cost.likely), math.log(max(1.0, good / low))))
    cheaper = math.exp(math.hypot(math.log(cost.likely / max(cost.low, 1e-12)), math.log(max(1.0, high / good))))
    return Range(low=likely / cheaper, likely=likely, high=likely * dearer)


def _mark_front(rows: Sequence[dict[str, Any]]) -> None:
    """Marks the variants that no other beats in quality without taking more hours."""
    points = [
        (row, row["quality"], row["cost"]["likely"]) for row in rows if row["cost"] and row["quality"] is not None
    ]
    for row, quality, hours in points:
        row["front"] = not any(
            better >= quality and less <= hours and (better, less) != (quality, hours) for _, better, less in points
        )


def check_truth(output: Path, truth: Path | None) -> None:
    """Raises UsageError if the truth or the reviewed rows cannot be used: better before the pilots than after."""
    known, source = known_truth(output, truth, Names())
    if known and not known.index:
        raise UsageError(f"--truth {str(source)!r} has no image: name a file with boxes of the input's images")
