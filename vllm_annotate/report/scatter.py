"""Draws points with error bars as self-contained SVG, readable on light and dark."""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from vllm_annotate.printable import printable
from vllm_annotate.report.charts import COLOURS, GREY, GRID_LINES, round_up, short

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 14, 42
STEPS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25)  # between the lines of the y axis
LONGEST_LABEL = 165
LETTER_WIDTH, LINE_HEIGHT, RADIUS, GAP = 6.8, 14, 5, 8


@dataclass(frozen=True)
class Point:
    """One measurement: (low, likely, high) of each axis."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]  # 0 to 1
    marked: bool


@dataclass(frozen=True)
class Scale:
    """Where values lie in the picture. The x axis starts at 0, the y axis just below the values."""

    widest: float
    bottom: float
    step: float

    def x(self, value: float) -> float:
        """From the left edge of the picture."""
        return LEFT + min(1.0, max(0.0, value / self.widest)) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """From the top edge of the picture."""
        share = (value - self.bottom) / (self.step * GRID_LINES)
        return TOP + (1 - min(1.0, max(0.0, share))) * (HEIGHT - TOP - BOTTOM)


@dataclass(frozen=True)
class Area:
    """A part of the picture."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Area") -> bool:
        """Whether they overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def meets_any(self, others: Iterable["Area"]) -> bool:
        """Whether it overlaps one of them."""
        return any(map(self.meets, others))

    def is_inside(self) -> bool:
        """Whether it lies between the axes and the edges of the picture."""
        return self.left >= LEFT and self.right <= WIDTH and self.top >= 0 and self.bottom <= HEIGHT - BOTTOM


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """An SVG of all points; marked ones are filled and joined by a line."""
    scale = _scale(points)
    what = "; ".join(f"{each.name}: {y_title} {each.y[1]:.3f}, {short(each.x[1])} {x_title}" for each in points)
    front = sorted((point.x[1], point.y[1]) for point in points if point.marked)
    line = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in front)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(what)}" font-family="system-ui, sans-serif" font-size="12">',
        *_axes(scale, x_title, y_title),
        f'<polyline points="{line}" fill="none" stroke="{GREY}" stroke-dasharray="4 4"/>',
        *(_drawn(point, COLOURS[number % len(COLOURS)], scale) for number, point in enumerate(points)),
        *_names(points, scale),
        "</svg>",
    ]
    return printable("".join(parts))


def _scale(points: Sequence[Point]) -> Scale:
    lowest, highest = (
        min((point.y[0] for point in points), default=0.0),
        max((point.y[2] for point in points), default=1),
    )
    widest = round_up(max((point.x[2] for point in points), default=1.0))
    for step in STEPS:
        bottom = max(0.0, min(math.floor(lowest / step + 1e-9) * step, 1 - GRID_LINES * step))
        if bottom + GRID_LINES * step >= highest - 1e-9:
            return Scale(widest, bottom, step)
    return Scale(widest, 0.0, STEPS[-1])


def _axes(scale: Scale, x_title: str, y_title: str) -> list[str]:
    parts = []
    for number in range(GRID_LINES + 1):
        across, up = number / GRID_LINES * scale.widest, scale.bottom + number * scale.step
        x, y = scale.x(across), scale.y(up)
        parts += [
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{GREY}" '
            'stroke-opacity=".3"/>',
            _label(LEFT - 6, y + 4, "end", f"{up:.3g}"),
            _label(x, HEIGHT - BOTTOM + 16, "middle", short(across)),
        ]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'<g transform="rotate(-90 10 {middle})">{_label(10, middle, "middle", escape(y_title))}</g>'
    return [*parts, _label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", escape(x_title)), turned]


def _drawn(point: Point, colour: str, scale: Scale) -> str:
    """A point with its error bars."""
    (left, x, right), (low, y, high) = map(scale.x, point.x), map(scale.y, point.y)
    fill = colour if point.marked else "none"
    return (
        f'<path d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" '
        f'stroke-width="1.5"/><circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{fill}" stroke="{colour}" '
        f'stroke-width="2"><title>{escape(point.name)}</title></circle>'
    )


def _names(points: Sequence[Point], scale: Scale) -> Iterator[str]:
    """The names beside their points; one for which there is no room is left to the tooltip."""
    at = [(scale.x(point.x[1]), scale.y(point.y[1])) for point in points]
    taken = [Area(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in at]
    bars = [
        bar
        for (x, y), point in zip(at, points, strict=True)
        for bar in (
            Area(x - 1, scale.y(point.y[2]), x + 1, scale.y(point.y[0])),
            Area(scale.x(point.x[0]), y - 1, scale.x(point.x[2]), y + 1),
        )
    ]
    for point, (x, y) in zip(points, at, strict=True):
        name = _shortened(point.name)
        places = [area for area in _places(x, y, width_of(name)) if area.is_inside() and not area.meets_any(taken)]
        if places:
            area = next((each for each in places if not each.meets_any(bars)), places[0])
            taken.append(area)
            yield (
                f'<text class="name" x="{area.left:.1f}" y="{area.bottom - 3:.1f}" fill="{GREY}" '
                f'font-weight="600">{escape(name)}</text>'
            )


def _places(x: float, y: float, width: float) -> Iterator[Area]:
    """Where a name may stand, the best first: above or below its point, to the right or to the left."""
    for lines in range(3):
        for top in (y - 2 - (1 + lines) * LINE_HEIGHT, y + 2 + lines * LINE_HEIGHT):
            for left in (x + GAP, x - GAP - width):
                yield Area(left, top, left + width, top + LINE_HEIGHT)


def _shortened(name: str) -> str:
    if width_of(name) <= LONGEST_LABEL:
        return name
    ends = accumulate(width_of(letter) for letter in f"…{name}")
    return name[: sum(end <= LONGEST_LABEL for end in ends) - 1] + "…"


def width_of(name: str) -> float:
    """Of a name in the picture, at most."""
    return LETTER_WIDTH * sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in name)


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{GREY}">{text}</text>'
