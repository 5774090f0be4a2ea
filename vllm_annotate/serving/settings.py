"""Settings of the server: where vLLM runs, or how to start it."""

import os
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from vllm_annotate.errors import UsageError
from vllm_annotate.inference.keys import NO_KEY
from vllm_annotate.serving.launch import Launch

DEFAULT_ENDPOINT = "http://localhost:8000/v1"
API_KEY_VARIABLE = "VLLM_API_KEY"  # `vllm serve` reads its key from it too


class Server(BaseModel):
    """OpenAI-compatible endpoints that serve one model; with `start`, also servers that the run starts."""

    model_config = ConfigDict(hide_input_in_errors=True)  # it may be a secret

    endpoints: list[str] = Field(
        default=[],
        title="Endpoints",
        description="Base URLs, such as http://gpu-1:8000/v1; each request goes to the least busy one. Empty uses the "
        f"servers of Start, or else {DEFAULT_ENDPOINT}.",
    )
    model: str | None = Field(
        default=None,
        title="Model",
        description="Name of the served model; empty uses the only model that the endpoints serve, or the name of the "
        "folder in Start.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        title="API key",
        description=f"Empty uses the environment variable {API_KEY_VARIABLE} of the machine that runs the flow.",
    )

    start: Launch | None = Field(
        default=None,
        title="Start",
        description="How to start vLLM on the machine that runs the flow; empty if it runs already.",
    )

    @field_validator("endpoints")
    @classmethod
    def _http_urls_once(cls, endpoints: list[str]) -> list[str]:
        return list(dict.fromkeys(_base_url(endpoint.strip()) for endpoint in endpoints))

    def urls(self) -> list[str]:
        """The base URLs of all endpoints; those of the servers to start come first."""
        started = self.start.urls() if self.start is not None else []
        others = [url for url in self.endpoints if url.replace("//localhost:", "//127.0.0.1:") not in started]
        return list(dict.fromkeys([*started, *others])) or [DEFAULT_ENDPOINT]

    def expected_model(self) -> str | None:
        """The name that requests will use; None if only a server can tell."""
        return self.start.served_name(self.model) if self.start is not None else self.model

    def resolved_api_key(self) -> str:
        """The key to send; NO_KEY if none is set."""
        own = self.api_key.get_secret_value() if self.api_key is not None else ""
        key = (own or os.environ.get(API_KEY_VARIABLE, "")).strip()
        if not (key.isascii() and key.isprintable()):
            raise UsageError(
                f"the API key in the block or in {API_KEY_VARIABLE} contains characters that are not allowed in an "
                "HTTP header: use printable ASCII"
            )
        return key or NO_KEY

    def secrets(self) -> list[str]:
        """Names of what may be secret: the fields api_key and start.environment."""
        key = ["api_key"] if self.api_key is not None else []
        return key + [f"environment {name}" for name in (self.start.secret_variables() if self.start else ())]

    def without_secrets(self) -> dict[str, Any]:
        """The fields that are not at their default, without secrets, for files and for parameters of other runs."""
        shown = set(Server.model_fields) - {"api_key", "start"}
        fields = self.model_dump(mode="json", include=shown, exclude_defaults=True)
        return fields | ({"start": self.start.without_secrets()} if self.start is not None else {})

    def own_key(self) -> str:
        """The key for a server that the run starts; empty for none."""
        key = self.resolved_api_key()
        return "" if key == NO_KEY else key


def _base_url(url: str) -> str:
    """The URL without a trailing slash. Raises ValueError if it is invalid or contains secrets."""
    if not url.startswith(("http://", "https://")):
        shown = url.rpartition("@")[2].partition("?")[0]  # the rest may be a secret
        raise ValueError(f"endpoint {shown[:60]!r} must start with http:// or https://, as in {DEFAULT_ENDPOINT}")
    split = urlsplit(url)
    try:
        complete = bool(split.hostname) and split.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise ValueError(
            f"endpoint {split.scheme}://… is not a URL with a host and a valid port, as in {DEFAULT_ENDPOINT}"
        )
    if split.username or split.password or split.query or split.fragment:
        raise ValueError(
            f"endpoint {split.scheme}://{split.hostname}… must not contain a user, password or query, as logs would "
            f"show it: set the key as api_key or in {API_KEY_VARIABLE}"
        )
    return url.rstrip("/")
