"""Draws points with error bars as self-contained SVG, readable on light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vllm_annotate.printable import printable
from vllm_annotate.report.charts import COLOURS, GREY, GRID_LINES, round_up, short

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 14, 42
LABEL_LETTERS = 22
LETTER_WIDTH = 6.4


@dataclass(frozen=True)
class Point:
    """One measurement: (low, likely, high) of each axis."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]  # 0 to 1
    marked: bool


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """An SVG of all points; marked ones are filled and joined by a line."""
    widest = round_up(max((point.x[2] for point in points), default=1.0))
    what = "; ".join(f"{each.name}: {y_title} {each.y[1]:.3f}, {each.x[1]:.3g} {x_title}" for each in points)
    front = sorted((point.x[1], point.y[1]) for point in points if point.marked)
    line = " ".join(f"{_x(x, widest):.1f},{_y(y):.1f}" for x, y in front)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(what)}" font-family="system-ui, sans-serif" font-size="12">',
        *_axes(widest, x_title, y_title),
        f'<polyline points="{line}" fill="none" stroke="{GREY}" stroke-dasharray="4 4"/>',
        *(_drawn(point, COLOURS[number % len(COLOURS)], widest) for number, point in enumerate(points)),
        "</svg>",
    ]
    return printable("".join(parts))


def _axes(widest: float, x_title: str, y_title: str) -> list[str]:
    parts = []
    for number in range(GRID_LINES + 1):
        share = number / GRID_LINES
        x, y = _x(share * widest, widest), _y(share)
        parts += [
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{GREY}" '
            'stroke-opacity=".3"/>',
            _label(LEFT - 6, y + 4, "end", f"{share:g}"),
            _label(x, HEIGHT - BOTTOM + 16, "middle", short(share * widest)),
        ]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'<g transform="rotate(-90 10 {middle})">{_label(10, middle, "middle", escape(y_title))}</g>'
    return [*parts, _label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", escape(x_title)), turned]


def _drawn(point: Point, colour: str, widest: float) -> str:
    """A point, its error bars and its name, on the side that has room for it."""
    (left, x, right), (low, y, high) = (_x(value, widest) for value in point.x), (_y(value) for value in point.y)
    name = point.name if len(point.name) <= LABEL_LETTERS else f"{point.name[: LABEL_LETTERS - 1]}…"
    fits = x + 8 + LETTER_WIDTH * len(name) < WIDTH - RIGHT
    fill = f'fill="{colour}"' if point.marked else 'fill="none"'
    return (
        f'<path d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" '
        f'stroke-width="1.5"/><circle cx="{x:.1f}" cy="{y:.1f}" r="5" {fill} stroke="{colour}" stroke-width="2"/>'
        f'<text x="{x + 8 if fits else x - 8:.1f}" y="{y - 7:.1f}" text-anchor="{"start" if fits else "end"}" '
        f'fill="{colour}" font-weight="600">{escape(name)}</text>'
    )


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{GREY}">{text}</text>'


def _x(value: float, widest: float) -> float:
    return LEFT + min(1.0, max(0.0, value / widest)) * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return TOP + (1 - min(1.0, max(0.0, value))) * (HEIGHT - TOP - BOTTOM)
