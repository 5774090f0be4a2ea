"""The server as a block: saved and edited in the Prefect UI, loaded by name."""

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict

from blocks.referable_schema import referable_schema
from vllm_annotate.serving.settings import Server


class VLLMServer(Server, Block):
    """One or several OpenAI-compatible endpoints that serve one model; with `start` also servers of one's own."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra=referable_schema)

    _block_type_name = "vLLM Server"
    _block_type_slug = "vllm-server"
    _description = "Endpoints, model and key of the vLLM servers that annotate, and how to start them."
