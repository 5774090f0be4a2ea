"""Where vLLM answers, and how to start it: the settings."""

import os
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator

from vllm_annotate.errors import UsageError
from vllm_annotate.inference.keys import NO_KEY
from vllm_annotate.serving.launch import Launch

DEFAULT_ENDPOINT = "http://localhost:8000/v1"
API_KEY_VARIABLE = "VLLM_API_KEY"  # the name that `vllm serve` itself reads its key from


class Server(BaseModel):
    """One or several OpenAI-compatible endpoints that serve one model; with `start` also servers of one's own."""

    endpoints: list[str] = Field(
        default=[],
        title="Endpoints",
        description="Base URLs, such as http://gpu-1:8000/v1; with several, requests go to the least busy one. Empty "
        f"takes the servers of Start, or else {DEFAULT_ENDPOINT}.",
    )
    model: str | None = Field(
        default=None,
        title="Model",
        description="Name of the served model; empty takes the one that the endpoints serve, or the folder of Start.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        title="API key",
        description=f"Empty takes the environment variable {API_KEY_VARIABLE} of the machine that runs the flow.",
    )

    start: Launch | None = Field(
        default=None,
        title="Start",
        description="How to start vLLM on the machine that runs the flow; empty when somebody else starts it.",
    )

    @field_validator("endpoints")
    @classmethod
    def _http_urls_once(cls, endpoints: list[str]) -> list[str]:
        return list(dict.fromkeys(_base_url(endpoint.strip()) for endpoint in endpoints))

    def urls(self) -> list[str]:
        """The base URLs of all endpoints, those of the servers to start first."""
        started = self.start.urls() if self.start is not None else []
        others = [url for url in self.endpoints if url.replace("//localhost:", "//127.0.0.1:") not in started]
        return list(dict.fromkeys([*started, *others])) or [DEFAULT_ENDPOINT]

    def expected_model(self) -> str | None:
        """The name that requests will use, where it is known before any server is asked."""
        return self.start.served_name(self.model) if self.start is not None else self.model

    def resolved_api_key(self) -> str:
        """The key to send; where none is set a made-up one, for the client insists and such a server ignores it."""
        own = self.api_key.get_secret_value() if self.api_key is not None else ""
        key = (own or os.environ.get(API_KEY_VARIABLE, "")).strip()
        if not (key.isascii() and key.isprintable()):
            raise UsageError(
                f"the API key in the block or in {API_KEY_VARIABLE} has characters no HTTP header can hold"
            )
        return key or NO_KEY

    def own_key(self) -> str:
        """The key that a server of ours asks for; empty for none."""
        key = self.resolved_api_key()
        return "" if key == NO_KEY else key


def _base_url(url: str) -> str:
    """The URL without a trailing slash. Raises ValueError where it is none, or holds what would end in logs."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"endpoint {url!r} must start with http:// or https://, as in {DEFAULT_ENDPOINT}")
    split = urlsplit(url)
    try:
        complete = bool(split.hostname) and split.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise ValueError(
            f"endpoint {split.scheme}://… is no URL with a host and a valid port, as in {DEFAULT_ENDPOINT}"
        )
    if split.username or split.password or split.query or split.fragment:
        raise ValueError(
            f"endpoint {split.scheme}://{split.hostname}… must hold no user, password or query, which logs would show: "
            f"give the key as api_key or in {API_KEY_VARIABLE}"
        )
    return url.rstrip("/")
