"""report.html: complete, bounded, and safe against what models write."""

import base64
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from vllm_annotate.report.charts import HEIGHT, Line, chart
from vllm_annotate.report.estimate import Estimate, Range
from vllm_annotate.report.gallery import Example, with_images
from vllm_annotate.report.markdown import plain, samples
from vllm_annotate.report.page import page
from vllm_annotate.report.report import Report
from vllm_annotate.telemetry.bottleneck import Bottleneck

HOSTILE = '<script>document.title="owned"</script>"\'><img src=x onerror=alert(1)>{{ 7*7 }}]]><!-- \x00\x1b[31m\ud800'
REPORT = Report.model_validate({
    "model": HOSTILE, "recipe": "r", "endpoints": [HOSTILE], "failed_chunks": [HOSTILE] * 500_000,
    "seconds": 10.0, "annotating_seconds": 9.0,
    "images": {"input": 2, "distinct": 2, "answered": 1, "failed": 1, "already_done": 0}, "images_per_second": 1.0,
    "started": "2026-01-01T00:00:00+00:00", "family": "f",
    "tokens": {"prompt": 1, "completion": 1}, "servers": {HOSTILE: {"stand_in": True}}, "failures": {HOSTILE: 1},
    "quality": {"parse_stages": {}, "flags": {HOSTILE: 1}, "names": {HOSTILE: 1}, "areas": {}},
    "bottleneck": Bottleneck().verdict(),
    "telemetry": {"missing": [HOSTILE], "gpus": {}, "servers": {}, "client": {}},
})  # fmt: skip


class Parsed(HTMLParser):
    """Tags and attributes of a page, as a browser parses them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def hostile_row() -> dict[str, Any]:
    return {
        "image_path": HOSTILE, "caption": HOSTILE, "vlm_output": HOSTILE,
        "annotations": {"rationale": HOSTILE}, "flags": [HOSTILE],
        "objects": [{"name": HOSTILE, "bbox": [1, 2, 300, 400]}, {"bbox": ["a", None]}, 7, {"bbox": [5, 5, 5, 9]}],
    }  # fmt: skip


def test_text_from_models_and_files_is_escaped() -> None:
    failed = hostile_row() | {"failure": {"kind": HOSTILE, "message": HOSTILE}}
    drawn = chart(HOSTILE, [Line(HOSTILE, [(0, 1.0), (1, 2.0)]), Line("b", [(0, 1.0)])])
    text = page(REPORT, [drawn], [Example(hostile_row(), None, why_not=HOSTILE), Example(failed, None)], HOSTILE)
    parsed = Parsed(text.decode())
    assert not {"script", "iframe", "object", "link", "base"} & set(parsed.tags)
    assert parsed.tags.count("img") == 0
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("href", "src", "action")]
    policy = next(value for name, value in parsed.attributes if name == "content" and value and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert b"{{" in text, "shown verbatim, not evaluated"
    assert "49" not in [word.strip() for word in text.decode().split(">")]


def test_it_is_escaped_in_the_artifacts_too() -> None:
    said = samples([Example(hostile_row(), None, why_not="gone")])
    assert re.search(r"(?<!\\)[<`|]", said) is None, said
    assert plain("a_b | <c>") == r"a\_b \| \<c\>"
    assert "://x" not in plain("http://x.y").replace("\\", "")
    assert "@b" not in plain("a@b").replace("\\", "")


def test_rows_of_an_older_script_in_any_shape_are_shown() -> None:
    rows: list[dict[str, Any]] = [
        {"image_path": "a"}, {"image_path": None, "objects": "none", "annotations": []},
        {"image_path": "b", "objects": [{"bbox": {"x": 1}}], "caption": ["c", 1], "flags": "f", "failure": "why"},
    ]  # fmt: skip
    text = page(REPORT, [], [Example(row, None) for row in rows], "t").decode()
    assert text.count("<article") == 3


def deep(levels: int) -> Any:
    return [] if not levels else [deep(levels - 1)]


@pytest.mark.parametrize(
    "row",
    [
        {
            "caption": deep(900),
            "image_path": deep(900),
            "annotations": {"rationale": deep(900)},
            "vlm_output": deep(900),
        },
        {"objects": [{"name": deep(900), "bbox": [10**400, 1, 2, float("nan")]}, {"name": 1, "bbox": [1, 1, 9, 9]}]},
        {"image_path": "x", "failure": {"kind": deep(900), "message": 10**5000}},
        {"image_path": "x", "flags": [f"flag {number}" for number in range(100_000)]},
        {"image_path": "x", "objects": [{"name": '"' * 500, "bbox": [1, 1, 9, 9]}] * 30_000},
    ],
)
def test_no_row_stops_the_report_or_empties_its_gallery(row: dict[str, Any]) -> None:
    ordinary = {"image_path": "ordinary", "objects": [{"name": "a", "bbox": [1, 2, 3, 4]}]}
    text = page(REPORT, [], [Example(row, None), Example(ordinary, None)], "t")
    assert len(text) < 1_000_000
    assert text.count(b"<article") == 2
    assert "a" in samples([Example(row, None), Example(ordinary, None)])


def test_quotes_count_at_their_escaped_size() -> None:
    row = dict.fromkeys(("image_path", "caption", "vlm_output"), '"' * 2000)
    rows = [
        row | {"annotations": {"rationale": '"' * 2000}, "objects": [{"name": '"' * 120, "bbox": [1, 1, 9, 9]}] * 50}
    ]
    assert len(page(REPORT, [], [Example(row, b"x" * 20_000, (9, 9)) for row in rows * 200], "t")) <= 10_000_000


def test_control_characters_do_not_break_the_pictures_of_the_artifacts() -> None:
    row = {"image_path": "x", "objects": [{"name": "a\x00\x01b", "bbox": [1, 1, 9, 9]}]}
    said = samples([Example(row, b"jpeg", (8, 8))])
    picture = base64.b64decode(re.findall(r"svg\+xml;base64,([^)]+)", said)[0]).decode()
    assert ElementTree.fromstring(picture).tag.endswith("svg")  # noqa: S314 - it is ours


@pytest.mark.parametrize(("length", "fewest"), [(1, 200), (50, 100)])
def test_two_hundred_images_of_noise_stay_under_ten_megabytes(length: int, fewest: int, tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(900 * 900 * 3)
    Image.frombytes("RGB", (900, 900), noise).save(tmp_path / "noise.jpg", quality=95)
    row = {
        "image_path": "noise.jpg",
        "caption": "图" * 100 * length,
        "vlm_output": "文" * 600 * length,
        "annotations": {"rationale": "理" * 300 * length},
        "objects": [
            {"name": "名" * 10 * length, "bbox": [n, n, n + 500, n + 500]} for n in range(min(50, 10 * length))
        ],
    }
    text = page(REPORT, [], with_images([row] * 200, tmp_path, 320), "noise")
    assert len(text) <= 10_000_000
    assert fewest <= text.count(b"data:image/jpeg") <= 200
    assert (b"more images are omitted" in text) == (fewest < 200)


@pytest.mark.parametrize("points", [[], [(0.0, None)], [(5.0, 0.0)], [(0.0, 1e9), (1.0, None), (2.0, 3.0)]])
def test_a_chart_of_anything_is_an_svg(points: list[tuple[float, float | None]]) -> None:
    assert Parsed(chart("x", [Line("a", points)])).tags[0] == "svg"


@pytest.mark.parametrize("seconds", [0.4, 1.0, 3.7, 9.0, 61.0, 100.0, 599.0, 3600.0, 5000.0, 86_400.0, 500_000.0, 1e7])
def test_the_labels_of_a_time_axis_are_round_and_differ(seconds: float) -> None:
    drawn = chart("x", [Line("a", [(0, 1.0), (seconds, 2.0)])])
    labels = re.findall(rf'y="{HEIGHT - 6:.1f}"[^>]*>([^<]*)</text>', drawn)
    assert 2 <= len(labels) <= 7, labels
    assert len(set(labels)) == len(labels), labels


@pytest.mark.parametrize("most", [0.3, 1, 3, 7, 9, 13, 77, 130, 999, 4321, 98_765])
def test_the_labels_of_a_value_axis_are_round(most: float) -> None:
    drawn = chart("x", [Line("a", [(0, 0.0), (9, most)])])
    labels = [label.replace(",", "") for label in re.findall(r'text-anchor="end"[^>]*>([^<]*)</text>', drawn)]
    assert len(set(labels)) == len(labels) == 5
    assert all(len(label.strip("0.kM").replace(".", "")) <= 2 for label in labels), labels


def test_counts_are_bars_with_thousands_separated() -> None:
    quality = {"parse_stages": {"json": 12_345}, "flags": {"swapped": 1234}, "names": {"cat": 2500, "dog": 1250},
               "areas": {"top left": 75, "middle centre": 25}, "answers": 12_345, "objects": 5000,
               "distinct_names": 1500, "objects_an_image": {"1": 12_000, "10": 300, "31": 45}}  # fmt: skip
    text = page(REPORT.model_copy(update={"quality": quality}), [], [], "t").decode()
    assert re.search(r'--share:50.0%"><span dir="auto">dog</span><span>1,250 <span[^>]*>25.0 %', text)
    assert "and 1,498 more" in text
    assert re.search(r"10 \+</span><span>345", text)
    assert re.search(r'--share:0.6">75 %.*--share:0.2">25 %', text, re.DOTALL)


ESTIMATED = {
    "en": [
        "Estimate for the other 20,000 images", "from 200 of this run", "<b>3 h 20</b>", "time: 3 h 01 to 3 h 40",
        "GPU hours: 6.1 to 7.3", "energy: ", " kWh</b>", "<b>40 million</b>", "tokens of prompts: 40 to 40 million",
        "disk: 26 to 31",
    ],
    "zh": [
        "其余 20,000 张图片的预估", "基于本次运行的 200 张图片", "时间: 3 h 01 至 3 h 40", "<b>40 百万</b>",
        "提示词 token: 40 至 40 百万",
    ],
}  # fmt: skip


@pytest.mark.parametrize("language", ESTIMATED)
def test_the_page_of_a_part_says_what_the_rest_will_take(language: str) -> None:
    found = Estimate(
        images=20_000, measured_on=200, hours=Range.around(3.3333, 0.1), gpu_hours=Range.around(6.67, 0.09),
        kwh=Range.around(3, 0.1), prompt_tokens=Range.around(4e7, 0), completion_tokens=Range.around(1e6, 0.01),
        output_bytes=Range.around(3e7, 0.1),
    )  # fmt: skip
    maker = {
        "recipe": "r",
        "first": "2026-01-01",
        "last": "2026-01-01",
        "model": "m",
        "settings": {"language": language},
    }
    report = REPORT.model_copy(update={"estimate": found, "made_by": [maker]})
    nothing_new = REPORT.model_copy(update={"last_run": report, "made_by": [maker]})
    for each in (report, nothing_new):
        text = page(each, [], [], "t").decode()
        assert [said for said in ESTIMATED[language] if said not in text] == []
    assert "stimate" not in page(REPORT, [], [], "t").decode().partition("<body>")[2]
