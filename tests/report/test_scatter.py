"""The chart of a sweep: any variants, and every name that is shown can be read."""

import random
from itertools import combinations
from xml.etree import ElementTree

import pytest

from vllm_annotate.report.charts import short
from vllm_annotate.report.scatter import HEIGHT, LINE_HEIGHT, WIDTH, Point, scatter, width_of

SVG = "{http://www.w3.org/2000/svg}"


def drawn(points: list[Point]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter(points, "hours in all", "quality"))  # noqa: S314 - it is ours


def near(count: int, spread: float, seed: int) -> list[Point]:
    """Variants that lie about as close to each other as `spread`, with names of all lengths."""
    rng = random.Random(seed)
    points = []
    for number in range(count):
        x, y = 1 + spread * rng.random(), 0.9 - spread * rng.random() / 2
        name = rng.choice("a图") * rng.randint(1, 64) + str(number)
        points.append(Point(name, (x * 0.9, x, x * 1.1), (y - 0.03, y, min(1.0, y + 0.03)), marked=number % 2 == 0))
    return points


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40])
@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0])
def test_names_stay_inside_the_picture_and_apart_however_close_the_points_are(count: int, spread: float) -> None:
    for seed in range(5):
        points = near(count, spread, seed)
        svg = drawn(points)
        places = []
        for text in svg.iter(f"{SVG}text"):
            if text.get("class") == "name":
                x, y, name = float(text.get("x", "")), float(text.get("y", "")), text.text or ""
                places.append((x, y, x + width_of(name)))
                assert x >= 0
                assert x + width_of(name) <= WIDTH
                assert LINE_HEIGHT - 4 <= y <= HEIGHT
        assert len(places) >= min(count, 2 if spread < 1 else 3)
        for one, other in combinations(places, 2):
            assert one[2] <= other[0] or other[2] <= one[0] or abs(one[1] - other[1]) >= LINE_HEIGHT, (one, other)
        assert [title.text for title in svg.iter(f"{SVG}title")] == [point.name for point in points]


@pytest.mark.parametrize("low", [0.0, 0.2, 0.5, 0.81, 0.96, 1.0])
@pytest.mark.parametrize("high", [0.0, 0.3, 0.83, 0.97, 1.0])
def test_the_quality_axis_holds_all_error_bars_and_its_labels_differ(low: float, high: float) -> None:
    low, high = sorted((low, high))
    one, other = (Point("a", (1, 2, 3), (low, y, y), marked=True) for y in (low, high))
    svg = drawn([one, other])
    labels = [text.text or "" for text in svg.iter(f"{SVG}text") if text.get("text-anchor") == "end"]
    values = list(map(float, labels))
    assert len(set(labels)) == 5
    assert 0 <= values[0] <= low <= high <= values[-1] <= 1
    assert all(len(label) <= 5 for label in labels)


def test_no_variants_are_an_empty_chart() -> None:
    assert drawn([]).tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0000123456, "0.0000123"), (0.5, "0.5"), (99.97, "100"), (1234.5, "1,234"), (12_345.678, "12.3k"),
     (99_999, "100k"), (999_700, "1M"), (1_234_567.8, "1.23M"), (5e9, "5,000M")],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert short(value) == text
