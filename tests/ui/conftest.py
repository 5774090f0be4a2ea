"""Debian's Chromium, driven by Playwright; screenshots are the output of the tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deployed.conftest import Deployed, deployed_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Response

SCREENSHOTS = Path(__file__).parent.parent.parent / "ui-screenshots"


@pytest.fixture(scope="package")
def chromium() -> Iterator["Browser"]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium: apt-get install chromium fonts-noto-cjk")
    with sync_playwright() as driver:
        # Its own sandbox needs user namespaces, which root and containers often lack; it sees only our own pages.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Everything deployed to a Prefect server of its own."""
    with deployed_in(tmp_path_factory.mktemp("deployed"), {}) as made:
        yield made


@pytest.fixture
def screenshots() -> Path:
    """The folder for screenshots."""
    SCREENSHOTS.mkdir(exist_ok=True)
    return SCREENSHOTS


def send(page: "Page", button: "Locator", request: str) -> "Response":
    """Clicks a form's button until the server has taken the request: a person does too where SQLite was busy."""
    from playwright.sync_api import TimeoutError as NoResponse

    seen = []
    for _ in range(4):
        try:
            with page.expect_response(lambda response: response.url.endswith(request), timeout=15_000) as sent:
                button.click(timeout=10_000)
        except NoResponse as error:
            seen.append(str(error))
        else:
            if sent.value.status == 201:
                return sent.value
            seen.append(f"{sent.value.status}: {sent.value.text()}")
    pytest.fail(f"{request} was not taken: {seen}")
