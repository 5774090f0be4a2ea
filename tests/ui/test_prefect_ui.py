"""The run's artifacts in the UI of a real Prefect server."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stand_in.process import StandIn
from tests.conftest import Job, ask_prefect
from tests.telemetry.test_nvml import two_cards  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.ui
UIS = ["", "/v2"]  # Prefect ships two, and which is the default depends on its version


@pytest.fixture(scope="module")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory,
    prefect_api: str,
    two_cards: Path,  # noqa: F811
) -> dict[str, str]:
    """Key → id of the artifacts of a short run with two GPUs."""
    from demo.scenes import write_folder

    job = Job(tmp_path_factory.mktemp("job"), [])
    write_folder(job.folder, 120)
    with StandIn.started("--slots", "6", "--prefill-seconds", "0.5") as server:
        ran = job.run(
            server.url, "--max-concurrency", "12", LD_LIBRARY_PATH=str(two_cards), FAKE_NVML_PID=str(server.pid),
            FAKE_NVML_PID_1=str(server.pid), FAKE_NVML_UTILISATION="",
        )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    found = ask_prefect(prefect_api, "/artifacts/filter", sort="CREATED_DESC", limit=50)
    return {artifact["key"]: artifact["id"] for artifact in reversed(found)}


@pytest.fixture
def page(chromium: "Browser") -> Iterator["Page"]:
    context = chromium.new_context(viewport={"width": 1280, "height": 1500})
    page = context.new_page()
    yield page
    context.close()


@pytest.mark.parametrize("ui", UIS)
@pytest.mark.parametrize(
    ("key", "pictures"),
    [("annotate-gpus", 7), ("annotate-samples", 6)],  # utilisation, memory, power, requests, KV cache, tokens, images
)
def test_charts_and_sample_images_are_drawn(
    key: str, pictures: int, ui: str, artifacts: dict[str, str], prefect_api: str, page: "Page", screenshots: Path
) -> None:
    show(page, prefect_api, artifacts[key], ui)
    drawn = "[...document.querySelectorAll('img')].filter(i => i.src.startsWith('data:') && i.naturalWidth > 50).length"
    # The text comes first, and the page may be drawn again.
    assert page.wait_for_function(f"{drawn} === {pictures} && {drawn}").json_value() == pictures
    page.screenshot(path=screenshots / f"prefect-{key.removeprefix('annotate-')}{ui.replace('/', '-')}.png")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("annotate-summary", "Images per second"),
        ("annotate-bottleneck", "What to do"),
        ("annotate-failures", "unreadable"),
        ("annotate-proof", "its boxes are proven"),
        ("annotate-progress", "100"),
    ],
)
def test_the_other_artifacts_can_be_read(
    key: str, text: str, artifacts: dict[str, str], prefect_api: str, page: "Page", screenshots: Path
) -> None:
    show(page, prefect_api, artifacts[key])
    page.get_by_text(text).first.wait_for()
    assert "&#" not in page.locator("body").inner_text(), "text is shown unescaped"
    page.screenshot(path=screenshots / f"prefect-{key.removeprefix('annotate-')}.png")


def test_the_list_has_all_artifacts(
    artifacts: dict[str, str], prefect_api: str, page: "Page", screenshots: Path
) -> None:
    page.goto(f"{prefect_api.removesuffix('/api')}/artifacts")
    page.get_by_text("annotate-summary").first.wait_for()
    listed = page.locator("body").inner_text()
    assert [key for key in artifacts if key not in listed] == []
    page.screenshot(path=screenshots / "prefect-artifacts.png")


def show(page: "Page", api: str, artifact: str, ui: str = "") -> None:
    page.goto(f"{api.removesuffix('/api')}{ui}/artifacts/artifact/{artifact}")
    if ui:
        page.wait_for_url("**?tab=*")  # the UI redirects there and draws everything again
    page.wait_for_load_state("networkidle")
