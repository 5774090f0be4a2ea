"""A deployment's form in the Prefect UI: it explains itself, and a saved block can be chosen from a list."""

import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ask_prefect
from tests.deployed.conftest import Deployed
from tests.ui.conftest import send

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.ui


@pytest.mark.parametrize("interface", ["", "/v2"], ids=["v1", "v2"])
def test_a_run_is_started_from_the_form_with_a_saved_block(
    deployed: Deployed, chromium: "Browser", screenshots: Path, interface: str
) -> None:
    with urllib.request.urlopen(f"{deployed.api}/deployments/name/annotate-images/annotate") as response:
        deployment = json.load(response)["id"]
    page = chromium.new_page(viewport={"width": 1300, "height": 1900})
    page.goto(f"{deployed.api.removesuffix('/api')}{interface}/deployments/deployment/{deployment}/run")
    page.get_by_text("Folder or URL that image paths are relative to").wait_for()
    output = f"/data/from the form{interface}.jsonl"
    fields = page.locator("textarea")
    for number, text in enumerate(("/data/captions.jsonl", "/data/images", output)):
        fields.nth(number).fill(text)
    with page.expect_response(lambda response: "block_documents" in response.url):
        page.get_by_text("vLLM Server", exact=True).first.click()
    page.wait_for_timeout(1000)  # until it is in the list
    if interface:
        page.get_by_text("Select a block...").click()
    else:
        page.locator(".p-select-button__control").first.press("ArrowDown")
    page.get_by_text("local", exact=True).first.click()
    page.screenshot(path=screenshots / f"deployment-form{interface.replace('/', '-')}.png")
    run = send(page, page.get_by_role("button", name="Submit"), "/create_flow_run").json()
    assert run["parameters"]["output"] == output
    block = ask_prefect(
        deployed.api, "/block_documents/filter", block_documents={"name": {"any_": ["local"]}}, include_secrets=False
    )[0]
    assert run["parameters"]["server"] == {"$ref": {"block_document_id": block["id"]}}
    page.close()
