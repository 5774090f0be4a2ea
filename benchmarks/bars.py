"""Draws measurements as an SVG bar chart, readable on light and dark: medians, with lines from minimum to maximum."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, ROW, TOP = 720, 34, 34
LEFT, RIGHT = 220, 90
GREY, BLUE = "#8b949e", "#2f81f7"


def bars(title: str, groups: Mapping[str, Mapping[str, Sequence[float]]], unit: str, ours: str) -> str:
    """The chart: the groups below each other, on one scale; highlights the bars named `ours`."""
    longest = max(max(values) for measured in groups.values() for values in measured.values())
    height = TOP + sum(TOP + ROW * len(measured) for measured in groups.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13" fill="{GREY}">',
        f'<text x="0" y="16" font-weight="600">{escape(title)}</text>',
    ]
    y = TOP
    for name, measured in groups.items():
        parts.append(f'<text x="0" y="{y + 18}" font-style="italic">{escape(name)}</text>')
        parts += _group(y + TOP, measured, (WIDTH - LEFT - RIGHT) / longest, unit, ours)
        y += TOP + ROW * len(measured)
    return "".join([*parts, "</svg>\n"])


def _group(top: int, measured: Mapping[str, Sequence[float]], scale: float, unit: str, ours: str) -> list[str]:
    parts = []
    for number, (name, values) in enumerate(measured.items()):
        y, middle = top + ROW * number, statistics.median(values)
        least, most = (LEFT + scale * value for value in (min(values), max(values)))
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 18}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y + 4}" width="{scale * middle:.1f}" height="20" rx="2" '
            f'fill="{BLUE if name == ours else GREY}" fill-opacity="{1 if name == ours else 0.6}"/>',
            f'<path d="M{least:.1f} {y + 14}H{most:.1f}" stroke="{GREY}" stroke-width="2"/>',
            f'<text x="{most + 8:.1f}" y="{y + 18}">{middle:.2f} {escape(unit)}</text>',
        ]
    return parts
