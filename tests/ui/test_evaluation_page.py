"""The pages of evaluate and compare in a browser: offline, on a phone, in dark mode, without scripts."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.conftest import lines_of
from tests.evaluation.scenes import write_rows, write_scenes
from vllm_annotate.evaluation.report import compare_to_files, evaluate_to_files

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.ui
IMAGES = 30


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both pages of drawn answers, one name and one path of which are as long as they get."""
    folder = tmp_path_factory.mktemp("evaluation")
    coco = write_scenes(folder, IMAGES)
    for image in coco["images"]:
        Image.effect_noise((image["width"], image["height"]), 50).save(folder / image["file_name"])
    long = {"image_path": "x" * 300, "objects": [{"name": "无空格的名称" * 30, "bbox": [1, 1, 900, 900]}]}
    rows = random.Random(0).sample([*lines_of(folder / "labeled.jsonl"), long], IMAGES + 1)
    write_rows(folder / "labeled.jsonl", rows)
    write_rows(folder / "truth.jsonl", [*lines_of(folder / "truth.jsonl"), long | {"objects": []}])
    output, truth = folder / "labeled.jsonl", folder / "truth.jsonl"
    _, (_, evaluation) = evaluate_to_files(output, truth, image_root=folder)
    _, (_, comparison) = compare_to_files(output, truth, truth, image_root=folder)
    return {"evaluation": Path(evaluation), "comparison": Path(comparison)}


def opened(browser: "Browser", path: Path, width: int, scheme: str = "light") -> "Page":
    """The page in an offline browser; any request and any error of the page fails the test."""
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme  # type: ignore[arg-type]
    )  # fmt: skip
    page = context.new_page()
    page.on("request", lambda request: pytest.fail(request.url) if request.url.startswith("http") else None)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("kind", ["evaluation", "comparison"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_nothing_is_wider_than_the_screen_and_text_stands_out(
    kind: str, width: int, scheme: str, pages: dict[str, Path], chromium: "Browser", screenshots: Path
) -> None:
    page = opened(chromium, pages[kind], width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{what}") for what in ("color", "backgroundColor"))
    assert (brightness(ink) < brightness(paper)) == (scheme == "light")
    page.screenshot(path=screenshots / f"{kind}-{width}-{scheme}.png", full_page=True)


def brightness(colour: str) -> float:
    """The sum of the channels of `rgb(1, 2, 3)`."""
    return sum(float(channel) for channel in colour[4:-1].split(","))


@pytest.mark.parametrize(("kind", "what"), [("evaluation", "missed"), ("comparison", "gained")])
def test_filters_show_the_images_that_have_it(
    kind: str, what: str, pages: dict[str, Path], chromium: "Browser"
) -> None:
    page = opened(chromium, pages[kind], 1280)
    everything = page.locator("article").count()
    button = page.get_by_label(what)
    button.check()
    left = page.locator("article:visible")
    assert 0 < left.count() < everything
    assert left.filter(has_text=what).count() == left.count()
    assert (
        page.get_by_label(what).evaluate("input => input.labels[0].textContent").strip() == f"{what} ({left.count()})"
    )


def test_boxes_lie_on_the_picture(pages: dict[str, Path], chromium: "Browser") -> None:
    page = opened(chromium, pages["evaluation"], 1280)
    figure = page.locator("figure").first
    picture, drawn = (figure.locator(what).first.bounding_box() for what in ("img", "svg"))
    assert picture == drawn
    assert figure.locator("rect").count() >= figure.locator("span").count() > 0
