"""The page of each command on the same drawn scenes, in a browser: the answer first, on a desk and on a phone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.scenes import write_folder
from stand_in.process import StandIn
from tests.conftest import lines_of
from tests.evaluation.scenes import write_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.ui
VLLM_ANNOTATE = Path(sys.executable).with_name("vllm-annotate")
DRAWN, IN_ALL, SAMPLE = 150, 20_000, 72
SCREENS = [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]
# What the first screen of each page has to show, as Playwright's selectors.
ANSWERS = {
    "pilot": ["text=Estimate for the other 19,928 images", "text=time:", "text=images annotated"],
    "sweep": ["text=careful-small-images", ".price:visible"],
    "evaluation": ["text=precision", "text=recall", "text=F1 at IoU 0.5"],
    "comparison": ["text=A is better with probability", "text=agreement: mean F1 at IoU 0.5"],
    "audit": ["text=agreement: mean F1 at IoU 0.5", "text=right boxes"],
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two servers, a slow one that errs in some images and a fast one that errs in all; a page of each command."""
    folder = tmp_path_factory.mktemp("pages")
    truth = write_collection(folder)
    output, sweep = folder / "labeled.jsonl", folder / "labeled.sweep"
    slow, fast = (
        StandIn("--slots", "8", "--prefill-seconds", seconds, "--completion-tokens", "90", "--completion-spread", "0.3")
        for seconds in ("0.6", "0.15")
    )
    try:
        for server in (slow, fast):
            server.start()
        slow.set_faults({"kind": "unsure", "count": None, "seed": 1, "match": "picture"})
        fast.set_faults({"kind": "unsure", "count": None, "seed": 2})
        job = ["--input", folder / "input.jsonl", "--image-root", folder / "images", "--output", output,
               "--sample", SAMPLE, "--canary-every", "0", "--max-concurrency", "16"]  # fmt: skip
        endpoint = ["--api-base", f"{slow.url}/v1"]
        variants = [
            {"name": name, "server": {"endpoints": [f"{server.url}/v1"]}, "recipe": {"max_visual_tokens": tokens}}
            for name, server, tokens in (
                ("careful", slow, 1280), ("careful-small-images", slow, 400),
                ("quick", fast, 1280), ("quick-small-images", fast, 400),
            )
        ]  # fmt: skip
        (folder / "sweep.yaml").write_text(json.dumps(variants))
        for command in ("pilot", "annotate"):
            run(command, *job, *endpoint, "--without-prefect")
        run("pilot", *job, "--sweep", folder / "sweep.yaml", "--truth", truth)
        run("audit", "--output", output, "--truth", truth, *endpoint)
    finally:
        for server in (slow, fast):
            server.kill()
    run("evaluate", "--output", output, "--truth", truth)
    run("compare", "--output", sweep / "careful.jsonl", "--with", sweep / "quick.jsonl", "--truth", truth)
    return {
        "pilot": folder / "labeled.pilot.report.html",
        "sweep": folder / "labeled.sweep.html",
        "evaluation": folder / "labeled.evaluation.html",
        "comparison": sweep / "careful.comparison.html",
        "audit": folder / "labeled.audit.html",
    }


def write_collection(folder: Path) -> Path:
    """A collection whose images are drawn ones under many names; returns the truth about all of them."""
    input_path, truth = write_folder(folder, DRAWN)
    rows, truths, images = lines_of(input_path)[:-1], lines_of(truth), folder / "images"
    for number in range(len(rows), IN_ALL):
        drawn = number % (DRAWN - 1)
        path = f"{number:05d}{Path(rows[drawn]['image_path']).suffix}"
        os.link(images / rows[drawn]["image_path"], images / path)
        rows.append(rows[drawn] | {"image_path": path})
        truths.append(truths[drawn] | {"image_path": path})
    write_rows(input_path, rows)
    return write_rows(truth, truths)


def run(*arguments: Any) -> None:
    """Runs the command."""
    done = subprocess.run(
        [VLLM_ANNOTATE, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=SCREENS, ids=lambda screen: f"{screen[0]}-{screen[2]}")
def screen(request: pytest.FixtureRequest) -> tuple[int, int, str]:
    """Width, height and colour scheme."""
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_first_screen_has_the_answer_and_no_text_is_hidden_or_broken(
    kind: str, screen: tuple[int, int, str], pages: dict[str, Path], chromium: "Browser", screenshots: Path
) -> None:
    width, height, scheme = screen
    page = opened(chromium, pages[kind], *screen)
    page.screenshot(path=screenshots / f"{kind}-first-{width}-{scheme}.png")
    page.screenshot(path=screenshots / f"{kind}-whole-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing to scroll sideways"
    for answer in ANSWERS[kind]:
        place = page.locator(answer).first.bounding_box()
        assert place is not None, answer
        assert place["y"] + place["height"] <= height, (answer, place)
        assert place["x"] + place["width"] <= width, (answer, place)
    assert page.evaluate(OVERLAPPING) == []
    assert page.evaluate(BROKEN_WORDS) == []
    assert page.evaluate(ROWS_WITH_A_GAP) == []
    assert page.evaluate(OUTSIDE_ITS_CHART) == []


def opened(browser: "Browser", path: Path, width: int, height: int, scheme: str) -> "Page":
    """The page in an offline browser; a request, an error and a message of the console fail the test."""
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": height}, color_scheme=scheme  # type: ignore[arg-type]
    )  # fmt: skip
    page = context.new_page()
    page.on("request", lambda request: pytest.fail(request.url) if request.url.startswith("http") else None)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.on("console", lambda message: pytest.fail(message.text))
    page.goto(path.as_uri())
    return page


# Pairs of texts that lie over each other; what a scrolling part hides does not count.
OVERLAPPING = """() => {
    const places = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const text = node.textContent.trim(), element = node.parentElement;
        if (!text || !element.checkVisibility() || element.closest("style, figure")) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        for (const { left, top, right, bottom } of range.getClientRects()) {
            const place = { text, left, top, right, bottom };
            for (let around = element; around; around = around.parentElement) {
                if (getComputedStyle(around).overflow === "visible" || around === document.body) continue;
                const edge = around.getBoundingClientRect();
                place.left = Math.max(place.left, edge.left); place.right = Math.min(place.right, edge.right);
                place.top = Math.max(place.top, edge.top); place.bottom = Math.min(place.bottom, edge.bottom);
            }
            if (place.right > place.left && place.bottom > place.top) places.push(place);
        }
    }
    const found = [];
    places.sort((one, other) => one.top - other.top);
    places.forEach((one, at) => {
        for (const other of places.slice(at + 1)) {
            if (other.top > one.bottom - 4) break;
            if (Math.min(one.right, other.right) - Math.max(one.left, other.left) > 2 && one.bottom - other.top > 4)
                found.push([one.text, other.text]);
        }
    });
    return found;
}"""
ROWS_WITH_A_GAP = """() => [...document.querySelectorAll(".figures")].flatMap(list => {
    const rows = Map.groupBy([...list.children], item => Math.round(item.getBoundingClientRect().top));
    const ends = [...rows.values()].map(row => Math.max(...row.map(item => item.getBoundingClientRect().right)));
    return ends.filter(end => end < list.getBoundingClientRect().right - 2);
})"""
BROKEN_WORDS = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        if (!node.parentElement.checkVisibility() || node.parentElement.closest("style, svg")) continue;
        for (const word of node.textContent.matchAll(/[A-Za-z]{2,20}/g)) {
            const range = document.createRange();
            range.setStart(node, word.index);
            range.setEnd(node, word.index + word[0].length);
            if (range.getClientRects().length > 1) found.push(word[0]);
        }
    }
    return found;
}"""
OUTSIDE_ITS_CHART = """() => [...document.querySelectorAll("svg text")].filter(text => {
    const place = text.getBBox(), chart = text.ownerSVGElement.viewBox.baseVal;
    if (text.closest("[transform]")) return false;  // turned: its place is that before
    return place.x < -1 || place.x + place.width > chart.width + 1 || place.y + place.height > chart.height;
}).map(text => text.textContent)"""
