"""report.html in a browser: offline, on a phone, in dark mode, without a mouse."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageChops

from demo.scenes import write_folder
from stand_in.process import StandIn
from tests.conftest import ROOT, lines_of
from vllm_annotate.report.page import FIRST_CARDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.ui
SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
IMAGES = 40


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Path:
    """The page of a job with drawn scenes, where a caption and an answer are scripts."""
    folder = tmp_path_factory.mktemp("report")
    input_path, _ = write_folder(folder, IMAGES)
    rows = lines_of(input_path)
    rows[8]["caption"] = SCRIPT
    rows[1]["caption"] = "hostile answer"
    input_path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    answer = json.dumps({"rationale": SCRIPT, "objects": [{"bbox_2d": [5, 5, 90, 90], "label": SCRIPT}]})
    swapped = json.dumps({"rationale": "swapped", "objects": [{"bbox_2d": [90, 90, 5, 5], "label": "a"}]})
    with StandIn.started("--slots", "6", "--prefill-seconds", "1.2") as server:  # long enough for a chart
        server.set_faults(
            {"kind": "text", "text": answer, "match": "hostile answer"},
            {"kind": "text", "text": swapped, "count": 4, "match": "picture"},
            {"kind": "400", "count": 2, "match": "图片"},
        )
        ran = subprocess.run(
            [sys.executable, "-m", "flows.annotate", "--input", input_path, "--image-root", folder / "images",
             "--output", folder / "labeled.jsonl", "--api-base", f"{server.url}/v1"],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    return folder / "labeled.report.html"


@pytest.fixture
def page(report: Path, chromium: "Browser") -> "Page":
    """The report in an offline browser; any request and any error of the page fails the test."""
    context = chromium.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.on("request", lambda request: pytest.fail(request.url) if request.url.startswith("http") else None)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(report.as_uri())
    return page


def test_boxes_are_drawn_where_the_shapes_are(page: "Page", report: Path) -> None:
    truths = {row["image_path"]: row["objects"] for row in lines_of(report.with_name("truth.jsonl"))}
    page.add_style_tag(content=".picture span, .picture rect { opacity: 0 } .picture rect.on { opacity: 1 }")
    page.get_by_label("Show all").check()
    checked = 0
    for card in page.locator("article:has(svg rect):not(:has(.marks))").all():
        path = card.locator("h3").inner_text()
        if path == "0001.jpg":  # the hostile answer
            continue
        bare, names = pixels(card.locator("figure")), card.locator("li").all_inner_texts()
        for truth in truths[path]:
            rect = card.locator("svg rect").nth(names.index(truth["name"]))
            rect.evaluate("rect => rect.classList.add('on')")
            drawn = (
                ImageChops.difference(pixels(card.locator("figure")), bare).convert("L").point(lambda v: 255 * (v > 9))
            )
            rect.evaluate("rect => rect.classList.remove('on')")
            sides = (bare.width, bare.height) * 2
            expected = [side * place / 1000 for side, place in zip(sides, truth["bbox"], strict=True)]
            lines = drawn.getbbox() or (0, 0, 0, 0)
            assert max(abs(one - other) for one, other in zip(lines, expected, strict=True)) <= 4, (
                path,
                lines,
                expected,
            )
            checked += 1
    assert checked >= 60


def pixels(element: "Locator") -> Image.Image:
    """A screenshot of the element."""
    return Image.open(io.BytesIO(element.screenshot())).convert("RGB")


def test_a_script_in_a_caption_or_an_answer_is_shown_and_does_nothing(page: "Page") -> None:
    page.wait_for_timeout(300)
    assert page.title() == "Annotations of labeled.jsonl"
    assert page.locator("article", has_text=SCRIPT).count() == 2
    assert page.locator("script, article img:not([src^='data:'])").count() == 0


def test_filters_work_with_the_keyboard_alone(page: "Page") -> None:
    shown = "article:visible"
    assert page.locator(shown).count() == FIRST_CARDS
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "radio":
            break
    counts = []
    for _ in range(page.locator("fieldset input").count() - 1):
        page.keyboard.press("ArrowRight")
        label = page.locator("label:has(:checked)").inner_text()
        counts.append((label, page.locator(shown).count()))
    assert all(f"({count})" in label for label, count in counts), counts
    assert {label.partition(" (")[0] for label, _ in counts} >= {"failed: rejected", "failed: unreadable", "swapped"}
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("details[open] pre").count() == 1
    page.get_by_label("all (").check()
    for _ in range(4 * FIRST_CARDS):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "every":
            break
    page.keyboard.press("Space")
    assert page.locator(shown).count() == IMAGES


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 390)])
def test_it_is_readable_on_a_desk_and_on_a_phone_by_day_and_by_night(
    report: Path, chromium: "Browser", screenshots: Path, name: str, width: int, scheme: str
) -> None:
    context = chromium.new_context(
        offline=True,
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
    for selector in ("body", ".soft", "summary"):
        assert _contrast(page, selector) >= 4.5, selector
    gallery = page.locator("article").first.bounding_box()
    assert gallery is not None
    assert gallery["y"] < 600, "images within the first screen"
    page.screenshot(path=screenshots / f"report-{name}-{scheme}.png")
    page.get_by_label("nothing flagged").check()
    page.evaluate("document.querySelector('#gallery').scrollIntoView()")
    page.screenshot(path=screenshots / f"gallery-{name}-{scheme}.png")


def _contrast(page: "Page", selector: str) -> float:
    """The WCAG contrast of a text and its background."""
    return float(
        page.locator(selector).first.evaluate(
            """element => {
                const light = colour => {
                    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(Number).map(v => v / 255)
                        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
                };
                let behind = element;
                while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
                const one = light(getComputedStyle(element).color);
                const other = light(getComputedStyle(behind).backgroundColor);
                return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            }"""
        )
    )
