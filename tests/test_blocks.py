"""The blocks: defaults for every field, checks, and secrets."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, runtime
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.utilities.schema_tools import validate
from pydantic import ValidationError

from blocks import AnnotationRecipe, VLLMServer
from flows.annotate import annotate_images
from tests.conftest import ask_prefect
from vllm_annotate.errors import UsageError


@pytest.mark.parametrize("block", [AnnotationRecipe, VLLMServer])
def test_every_field_has_a_default_so_that_saved_blocks_stay_loadable(block: type[Block]) -> None:
    assert not [name for name, field in block.model_fields.items() if field.is_required()]
    block()


@pytest.mark.parametrize("block", [AnnotationRecipe, VLLMServer])
def test_every_field_has_a_title_and_a_description_for_the_ui(block: type[Block]) -> None:
    assert not [name for name, field in block.model_fields.items() if not (field.title and field.description)]


def test_endpoints_have_no_trailing_slash_and_no_duplicates() -> None:
    assert VLLMServer(endpoints=["http://a:1/v1/", " http://a:1/v1", "https://b/v1"]).endpoints == [
        "http://a:1/v1",
        "https://b/v1",
    ]
    with pytest.raises(ValidationError, match="must start with http"):
        VLLMServer(endpoints=["gpu-1:8000"])
    assert VLLMServer().urls() == ["http://localhost:8000/v1"]


def test_servers_to_start_are_endpoints_too() -> None:
    start = {"model_path": "/models/Qwen2.5-VL-7B", "port": 9000, "data_parallel_size": 2}
    server = VLLMServer(start=start, endpoints=["http://gpu-2:8000/v1"])
    assert server.urls() == ["http://127.0.0.1:9000/v1", "http://127.0.0.1:9001/v1", "http://gpu-2:8000/v1"]
    assert server.expected_model() == "Qwen2.5-VL-7B"
    assert VLLMServer(start=start, model="qwen").expected_model() == "qwen"


@pytest.mark.parametrize("url", ["http://", "http://a:abc/v1", "http://a:99999/v1", "http://[bad/v1"])
def test_an_endpoint_that_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        VLLMServer(endpoints=[url])


@pytest.mark.parametrize("url", ["http://user:s3cr3t@a/v1", "http://a/v1?token=s3cr3t"])
def test_an_endpoint_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValidationError, match="VLLM_API_KEY") as caught:
        VLLMServer(endpoints=[url])
    assert "s3cr3t" not in caught.value.errors()[0]["msg"]


def test_a_key_that_is_not_valid_in_a_header_is_refused() -> None:
    with pytest.raises(UsageError, match="not allowed in an HTTP header"):
        VLLMServer(api_key="schlüssel").resolved_api_key()


def test_the_key_comes_from_the_block_or_else_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert VLLMServer().resolved_api_key() == "none"
    monkeypatch.setenv("VLLM_API_KEY", "from the environment")
    assert VLLMServer().resolved_api_key() == "from the environment"
    assert VLLMServer(api_key="its own").resolved_api_key() == "its own"


def test_a_key_is_not_shown() -> None:
    assert "sesame" not in repr(VLLMServer(api_key="sesame"))


@pytest.mark.usefixtures("prefect_api")
async def test_blocks_are_saved_and_loaded_by_name() -> None:
    await AnnotationRecipe(language="zh", max_tokens=777).save("chinese", overwrite=True)
    await VLLMServer(endpoints=["http://gpu:1/v1"], api_key="sesame").save("gpu", overwrite=True)
    recipe = await AnnotationRecipe.load("chinese")
    server = await VLLMServer.load("gpu")
    assert (recipe.language, recipe.max_tokens) == ("zh", 777)
    assert server.resolved_api_key() == "sesame"


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("environment", [{"HF_TOKEN": "hf_Zq81xPvRw7", "NCCL_P2P_DISABLE": "1"}, {}])
async def test_prefect_masks_the_values_of_variables_and_an_edit_keeps_them(
    prefect_api: str, environment: dict[str, str]
) -> None:
    start: Any = {"model_path": "m", "environment": environment, "environment_from": ["OTHER"]}
    await VLLMServer(start=start, api_key="sesame").save("started", overwrite=True)
    wanted = {"name": {"any_": ["started"]}}
    (shown,) = ask_prefect(prefect_api, "/block_documents/filter", block_documents=wanted)
    assert shown["data"]["start"]["environment"] == (dict.fromkeys(environment, "********") or "********")
    assert shown["data"]["start"]["environment_from"] == ["OTHER"]
    edited = shown["data"] | {"model": "edited", "start": shown["data"]["start"] | {"port": 9000}}
    async with get_client() as client:  # what the form posts: what it was shown, but for the edit
        update = BlockDocumentUpdate(data=edited, merge_existing_data=False)
        await client.update_block_document(UUID(shown["id"]), update)
    server = await VLLMServer.load("started")
    assert (server.model, server.start.port) == ("edited", 9000)
    assert (server.start.variables, server.resolved_api_key()) == (environment, "sesame")


@pytest.mark.usefixtures("prefect_api")
async def test_the_record_of_a_run_masks_the_secrets_of_a_server(prefect_api: str) -> None:
    @flow
    async def run_with(server: VLLMServer) -> UUID:
        return UUID(runtime.flow_run.id)

    start: Any = {"model_path": "m", "environment": {"HF_TOKEN": "hf_Zq81xPvRw7"}}
    run = await run_with(VLLMServer(start=start, api_key="sesame"))
    (record,) = ask_prefect(prefect_api, "/flow_runs/filter", flow_runs={"id": {"any_": [str(run)]}})
    assert record["parameters"]["server"]["start"]["model_path"] == "m"
    assert not [secret for secret in ("hf_Zq8", "sesame") if secret in json.dumps(record)]


@pytest.mark.parametrize(
    "reference", [{"block_document_id": str(uuid4())}, {"block_document_slug": "vllm-server/mine"}]
)
def test_a_reference_to_a_saved_block_is_a_valid_parameter_and_so_is_a_block_itself(reference: dict[str, str]) -> None:
    schema = annotate_images.parameters.model_dump()
    paths: dict[str, Any] = {"input": "a", "image_root": "b", "output": "c"}
    references: dict[str, Any] = {"server": {"$ref": reference}, "recipe": {"$ref": reference}}
    block: dict[str, Any] = {"server": {"endpoints": []}}
    for given in (references, block):
        assert list(validate(paths | given, schema, preprocess=True)) == []
