"""Where vLLM answers."""

import os

from prefect.blocks.core import Block
from pydantic import Field, SecretStr, field_validator

DEFAULT_ENDPOINT = "http://localhost:8000/v1"
API_KEY_VARIABLE = "VLLM_API_KEY"  # the name that `vllm serve` itself reads its key from


class VLLMServer(Block):
    """One or several OpenAI-compatible endpoints that serve one model."""

    _block_type_name = "vLLM Server"
    _block_type_slug = "vllm-server"
    _description = "Endpoints, model and key of the vLLM servers that annotate."

    endpoints: list[str] = Field(
        default=[DEFAULT_ENDPOINT],
        min_length=1,
        title="Endpoints",
        description="Base URLs, such as http://gpu-1:8000/v1; with several, requests go to the least busy one.",
    )
    model: str | None = Field(
        default=None,
        title="Model",
        description="Name of the served model; empty takes the one that the endpoints serve.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        title="API key",
        description=f"Empty takes the environment variable {API_KEY_VARIABLE} of the machine that runs the flow.",
    )

    @field_validator("endpoints")
    @classmethod
    def _http_urls_once(cls, endpoints: list[str]) -> list[str]:
        urls = [endpoint.strip().rstrip("/") for endpoint in endpoints]
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"endpoint {url!r} must start with http:// or https://, as in {DEFAULT_ENDPOINT}")
        return list(dict.fromkeys(urls))

    def resolved_api_key(self) -> str:
        """The key to send; where none is set a made-up one, for the client insists and such a server ignores it."""
        if self.api_key is not None and self.api_key.get_secret_value():
            return self.api_key.get_secret_value()
        return os.environ.get(API_KEY_VARIABLE) or "none"
