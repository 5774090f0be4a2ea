"""What the rest of an input will take, from a run of some of its images: each figure with its range."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from vllm_annotate.report.charts import duration

FEWEST = 30  # images; fewer say too little
BATCHES, FEWEST_PER_BATCH = 10, 6  # of the steady part: how much their durations differ is the error of its rate
# What a sample of minutes cannot show: slower hours, longer captions, a limit that is still being found.
UNSEEN = 0.1
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t, two-sided 95 %, by degrees of freedom
MIB, GIB = 1024**2, 1024**3


class Range(BaseModel):
    """A figure, and between what it will probably be."""

    model_config = ConfigDict(extra="allow")

    low: float
    likely: float
    high: float

    @classmethod
    def around(cls, likely: float, error: float, fixed: float = 0.0) -> Self:
        """Of a figure with this relative error, and a fixed amount more."""
        low, high = likely / (1 + error), likely * (1 + error)
        return cls(low=round(low + fixed, 6), likely=round(likely + fixed, 6), high=round(high + fixed, 6))

    def scaled(self, factor: float) -> "Range":
        """All three times a factor."""
        return Range(low=factor * self.low, likely=factor * self.likely, high=factor * self.high)


class Figure(NamedTuple):
    """A figure in words."""

    name: str
    likely: str
    low: str
    high: str
    unit: str = ""


class Estimate(BaseModel):
    """What `images` more images will take. GPU hours and energy only where NVML tells."""

    model_config = ConfigDict(extra="allow")

    images: int
    measured_on: int  # images
    hours: Range
    fixed_hours: float = 0.0  # of these, whatever the number of images: start, plan, merge, filling the server
    gpu_hours: Range | None = None
    kwh: Range | None = None
    prompt_tokens: Range
    completion_tokens: Range
    output_bytes: Range

    def figures(self) -> list[Figure]:
        """Each figure in words."""
        found = [Figure("time", _time(self.hours.likely), _time(self.hours.low), _time(self.hours.high))]
        if self.gpu_hours is not None:
            found.append(_figure("GPU hours", self.gpu_hours))
        if self.kwh is not None:
            found.append(_figure("energy", self.kwh, "kWh"))
        found.append(_figure("prompts", self.prompt_tokens, "tokens"))
        found.append(_figure("answers", self.completion_tokens, "tokens"))
        unit, size = ("GiB", GIB) if self.output_bytes.likely >= GIB / 10 else ("MiB", MIB)
        return [*found, _figure("disk", self.output_bytes.scaled(1 / size), unit)]

    def sentences(self) -> list[str]:
        """The same as lines of text."""
        lines = [f"{each.name:9} {each.likely} ({each.low} to {each.high}) {each.unit}" for each in self.figures()]
        return [line.rstrip() for line in lines]


def estimate(
    images: int,
    done: Sequence[tuple[float, int, int]],
    *,
    in_flight: int,
    seconds: float,
    annotating_seconds: float,
    bytes_per_row: float,
    gpus: int = 0,
    watts: float | None = None,
) -> Estimate | None:
    """Returns what so many images will take; None if the run had too few.

    `done` has for each of its images, in that order, when it was done (seconds) and its prompt and completion tokens;
    `watts` is the mean power of all GPUs together.
    """
    if images <= 0 or len(done) < FEWEST:
        return None
    times = [at for at, _, _ in done]
    each, error = seconds_per_image(times, in_flight)
    error = math.hypot(error, UNSEEN)
    # Start, plan and merge, and the time to fill and to empty the server.
    fixed = max(0.0, seconds - annotating_seconds) + max(0.0, annotating_seconds - len(done) * each)
    hours = Range.around(images * each / 3600, error, fixed / 3600)
    return Estimate(
        images=images,
        measured_on=len(done),
        hours=hours,
        fixed_hours=round(fixed / 3600, 6),
        gpu_hours=hours.scaled(gpus) if gpus else None,
        kwh=None if watts is None else hours.scaled(watts / 1000),
        prompt_tokens=_total(images, [tokens for _, tokens, _ in done]),
        completion_tokens=_total(images, [tokens for _, _, tokens in done]),
        output_bytes=Range.around(images * bytes_per_row, UNSEEN),
    )


def seconds_per_image(times: Sequence[float], in_flight: int) -> tuple[float, float]:
    """The seconds from one image to the next in the steady part, and their relative error at 95 %.

    The first images only fill the server; while the last are answered, no others come.
    """
    count = len(times)
    filling, emptying = min(max(in_flight, count // 5), count // 3), min(in_flight, count // 3)
    steady = times[filling : count - emptying]
    batches = max(2, min(BATCHES, (len(steady) - 1) // FEWEST_PER_BATCH))
    ends = [steady[round(number * (len(steady) - 1) / batches)] for number in range(batches + 1)]
    each = (steady[-1] - steady[0]) / (len(steady) - 1)
    if each <= 0:
        return 1e-6, 1.0
    durations = [after - before for before, after in pairwise(ends)]
    spread = statistics.stdev(durations) / statistics.mean(durations)
    return each, T_95[batches - 2] * spread / math.sqrt(batches)


def _total(images: int, values: Sequence[int]) -> Range:
    mean = statistics.mean(values)
    error = 2 * statistics.stdev(values) / math.sqrt(len(values)) / mean if mean else 0.0
    return Range.around(images * mean, error)


def _figure(name: str, of: Range, unit: str = "") -> Figure:
    return Figure(name, _number(of.likely), _number(of.low), _number(of.high), unit)


def _time(hours: float) -> str:
    """In words that cannot be taken for hours and minutes, as 6:54 can."""
    seconds = 3600 * hours
    return f"{seconds / 60:.2g} min" if 100 <= seconds < 6000 else duration(seconds)


def _number(value: float) -> str:
    if value >= 1e6:
        millions = value / 1e6
        return f"{millions:,.0f} million" if millions >= 100 else f"{millions:.3g} million"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
