"""Stores one subject's measurements over a run of any length in bounded memory."""

from collections.abc import Mapping
from dataclasses import dataclass

MOST_POINTS = 200  # enough for a chart; at twice as many, neighbours are averaged


@dataclass(slots=True)
class Totals:
    """Statistics of one measurement over all samples that have it."""

    count: int = 0
    sum: float = 0.0
    max: float = float("-inf")
    first: float = 0.0
    last: float = 0.0

    def add(self, value: float) -> None:
        """Adds a value."""
        if not self.count:
            self.first = value
        self.count, self.sum, self.max, self.last = self.count + 1, self.sum + value, max(self.max, value), value

    @property
    def mean(self) -> float:
        """The mean; 0 without samples."""
        return self.sum / self.count if self.count else 0.0


class History:
    """Samples of one subject: averaged points for charts, exact totals for tables."""

    def __init__(self) -> None:
        self.totals: dict[str, Totals] = {}
        self._points: list[dict[str, Totals]] = []
        self._samples_a_point = 1
        self._in_last = 0  # samples in the last point

    def add(self, second: float, values: Mapping[str, float | None]) -> None:
        """Adds a sample; None means not measured."""
        begins = not self._points or self._in_last >= self._samples_a_point
        point = {} if begins else self._points[-1]
        self._in_last = 1 if begins else self._in_last + 1
        for name, value in (("second", second), *values.items()):
            if value is not None:
                point.setdefault(name, Totals()).add(value)
                self.totals.setdefault(name, Totals()).add(value)
        if begins:  # appended last: another thread draws charts
            self._points.append(point)
        if len(self._points) >= 2 * MOST_POINTS:
            self._halve()

    def points(self, name: str) -> list[tuple[float, float | None]]:
        """(second, mean) of each point; None if not measured."""
        return [(point["second"].mean, point[name].mean if name in point else None) for point in list(self._points)]

    def _halve(self) -> None:
        pairs = zip(self._points[::2], self._points[1::2], strict=True)
        self._points = [_joined(one, other) for one, other in pairs]
        self._samples_a_point *= 2
        self._in_last = self._samples_a_point


def _joined(one: dict[str, Totals], other: dict[str, Totals]) -> dict[str, Totals]:
    joined = dict(one)
    for name, totals in other.items():
        before = joined.get(name)
        joined[name] = (
            totals
            if before is None
            else Totals(
                before.count + totals.count,
                before.sum + totals.sum,
                max(before.max, totals.max),
                before.first,
                totals.last,
            )
        )
    return joined
