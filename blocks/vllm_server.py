"""The server as a Prefect block: edited in the UI, loaded by name."""

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict

from blocks.referable_schema import referable_schema
from vllm_annotate.serving.settings import Server


class VLLMServer(Server, Block):
    """One or more OpenAI-compatible endpoints that serve one model, including servers that the run starts."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra=referable_schema)

    _block_type_name = "vLLM Server"
    _block_type_slug = "vllm-server"
    _description = "Endpoints, model and API key of vLLM servers, and how to start them."
