"""The server as a Prefect block: edited in the UI, loaded by name."""

from typing import Any, ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict

from blocks.referable_schema import referable_schema
from vllm_annotate.serving.settings import Server


def masked_schema(schema: dict[str, Any], model: type[Block]) -> None:
    """The block's JSON schema, by which Prefect's server masks the key and every variable's value, but no name.

    Prefect itself would list the dictionary alone, and then show what is in it.
    """
    referable_schema(schema, model)
    schema["secret_fields"] = ["api_key", "start.environment.*"]


class VLLMServer(Server, Block):
    """One or more OpenAI-compatible endpoints that serve one model, including servers that the run starts."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra=masked_schema)

    _block_type_name = "vLLM Server"
    _block_type_slug = "vllm-server"
    _description = "Endpoints, model and API key of vLLM servers, and how to start them."
