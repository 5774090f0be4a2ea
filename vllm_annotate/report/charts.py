"""Draws measurements over time as self-contained SVG, readable on light and dark."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape

from vllm_annotate.printable import printable

WIDTH, HEIGHT = 480, 156
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 34, 26  # margins around the plot
GRID_LINES = 4
MOST_TICKS = 6
HOUR, DAY = 3600, 86_400
TIME_STEPS = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800,
    HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY,
)  # fmt: skip
GREY = "#8b949e"
COLOURS = ("#2f81f7", "#d4741c", "#2da44e", "#a371f7", "#e5534b", "#1b9e9e", "#b08800", "#bf4b8a")


@dataclass(frozen=True)
class Line:
    """One measurement: its name and (second, value) pairs in order; None breaks the line."""

    name: str
    points: Sequence[tuple[float, float | None]]


def chart(title: str, lines: Sequence[Line], *, unit: str = "", top: float | None = None) -> str:
    """An SVG of all lines over a time axis that starts at 0; the value axis ends at `top`, or just above the values."""
    shown = [line for line in lines if any(value is not None for _, value in line.points)]
    values = [value for line in shown for _, value in line.points if value is not None]
    highest = top or round_up(max(values, default=1.0))
    seconds = max((second for line in shown for second, _ in line.points), default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(_description(title, shown, unit))}" font-family="system-ui, sans-serif" font-size="12">',
        f'<text x="0" y="14" font-size="13" font-weight="600" fill="{GREY}">{escape(title)}</text>',
        *_axes(highest, seconds, unit),
        *(_legend_entry(number, line.name, len(shown)) for number, line in enumerate(shown) if len(shown) > 1),
        *(_polyline(line, COLOURS[number % len(COLOURS)], highest, seconds) for number, line in enumerate(shown)),
        "</svg>",
    ]
    return printable("".join(parts))


def data_uri(svg: str) -> str:
    """The SVG as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _axes(highest: float, seconds: float, unit: str) -> list[str]:
    parts = []
    for number in range(GRID_LINES + 1):
        value = number / GRID_LINES * highest
        y = _y(value, highest)
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GREY}" stroke-opacity=".3"/>',
            _label(LEFT - 6, y + 4, "end", f"{short(value)}{unit}"),
        ]
    step = time_step(seconds)
    for number in range(int(seconds / step + 1e-9) + 1):
        x = LEFT + number * step / seconds * (WIDTH - LEFT - RIGHT)
        parts.append(_label(min(x, WIDTH - 2 * RIGHT), HEIGHT - 6, "middle", duration(number * step)))
    return parts


def time_step(seconds: float) -> float:
    """The seconds between two labels of a time axis: a round number, for six labels at most."""
    return next((step for step in TIME_STEPS if seconds / step < MOST_TICKS), seconds / (MOST_TICKS - 1))


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{GREY}">{text}</text>'


def _legend_entry(number: int, name: str, of: int) -> str:
    width = min(170.0, (WIDTH - 190) / of)
    x = WIDTH - RIGHT - (of - number) * width
    letters = max(4, int(width / 6.8) - 3)
    text = name if len(name) <= letters else name[: letters - 1] + "…"
    return (
        f'<rect x="{x:.1f}" y="5" width="10" height="10" rx="2" fill="{COLOURS[number % len(COLOURS)]}"/>'
        f'<text x="{x + 14:.1f}" y="14" fill="{GREY}">{escape(text)}</text>'
    )


def _polyline(line: Line, colour: str, highest: float, seconds: float) -> str:
    pieces: list[list[str]] = [[]]
    for second, value in line.points:
        if value is None:
            pieces.append([])
            continue
        x = LEFT + second / seconds * (WIDTH - LEFT - RIGHT)
        pieces[-1].append(f"{x:.1f},{_y(value, highest):.1f}")
    style = f'fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round" stroke-linecap="round"'
    drawn = [piece * 2 if len(piece) == 1 else piece for piece in pieces if piece]  # a single point shows as a dot
    return "".join(f'<polyline points="{" ".join(piece)}" {style}/>' for piece in drawn)


def _y(value: float, highest: float) -> float:
    height = HEIGHT - TOP - BOTTOM
    return TOP + height * (1 - min(1.0, max(0.0, value / highest)))


def round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 and 10 times a power of ten: a quarter of it is a round number too."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value * 0.999)


def short(value: float) -> str:
    """`0.0123`, `4,560`, `12.3k`, `4M`."""
    if value >= 999_500:
        return f"{_three_digits(value / 1_000_000)}M"
    return f"{_three_digits(value / 1000)}k" if value >= 10_000 else _three_digits(value)


def _three_digits(value: float) -> str:
    """Or more before the point, and never an exponent."""
    return f"{value:,.0f}" if value >= 99.95 else f"{Decimal(f'{value:.3g}'):f}"


def duration(seconds: float) -> str:
    """`45 s`, `12:05`, `3 h 20`."""
    if 0 < seconds < 10 and seconds != round(seconds):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600} h {whole % 3600 // 60:02d}"


def _description(title: str, lines: Sequence[Line], unit: str) -> str:
    """The text alternative of a chart."""
    parts = []
    for line in lines:
        values = [value for _, value in line.points if value is not None]
        parts.append(f"{line.name} {sum(values) / len(values):.3g}{unit} on average, at most {max(values):.3g}{unit}")
    return f"{title}: {'; '.join(parts) or 'no data'}"
