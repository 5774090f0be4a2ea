"""Settings for starting vLLM."""

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Secret, field_serializer, field_validator, model_validator

from vllm_annotate.storage.masking import names_secret, secrets_in

LAST_PORT = 65_535
# In extra_arguments these would contradict a field, or show a secret in `ps`.
FIELDS_OF_THEIR_OWN = {
    "--api-key": "api_key of the server",
    "--port": "port",
    "--host": "host",
    "--served-model-name": "model of the server",
    "--data-parallel-size": "data_parallel_size",
}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # of an environment variable
SHORTEST_SECRET = 6  # characters: shorter values are switches and numbers, such as 1 or DEBUG
MAX_MODEL_LEN = 8192  # tokens: fits an image budget of 1280, a long caption and an answer of 1536


class Launch(BaseModel):
    """How to start vLLM on the machine that runs the flow; empty fields use vLLM's defaults."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    model_path: str = Field(
        description="Folder of the model, or a Hugging Face name such as Qwen/Qwen2.5-VL-7B-Instruct."
    )
    executable: str = Field(
        default="vllm", description="The vllm command: a name on the PATH, or a path into vLLM's own environment."
    )
    quantization: str | None = Field(default=None, description="Leave it empty: vLLM then reads it from the model.")
    tensor_parallel_size: Annotated[int, Field(ge=1)] = Field(default=1, description="GPUs that split each layer.")
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = Field(
        default=1, description="GPUs that each hold a share of the layers."
    )
    data_parallel_size: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Replicas: separate servers on consecutive ports, each on its own GPUs."
    )
    max_model_len: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description=f"Tokens of the longest request; empty uses {MAX_MODEL_LEN}, or the model's limit if lower.",
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Share of each GPU's memory that vLLM may take."
    )
    port: Annotated[int, Field(ge=1024, le=LAST_PORT)] = Field(default=8000, description="Port of the first replica.")
    host: str = Field(default="127.0.0.1", description="Where it listens; 0.0.0.0 lets other machines in.")
    gpus: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None,
        description="Indices of the GPUs to use; empty uses those in CUDA_VISIBLE_DEVICES with the most free memory.",
    )
    allowed_media_folder: str | None = Field(
        default=None,
        description="Has no effect: images always travel with the request, without their metadata.",
    )
    trust_remote_code: bool = Field(default=False, description="Whether to run code that comes with the model.")
    extra_arguments: list[str] = Field(
        default=[],
        description="More arguments of vllm serve, each an entry; they win over those that vllm-annotate sets.",
    )
    environment: Secret[dict[str, str]] = Field(
        default_factory=lambda: Secret({}),
        description="More environment variables. Their values are secret: Prefect masks them, and no file has them.",
    )
    environment_from: list[str] = Field(
        default=[],
        description="Names of variables, such as HF_TOKEN, that must be set where the run starts vLLM; a start without "
        "one of them is refused.",
    )
    start_timeout_seconds: Annotated[float, Field(gt=0)] = Field(default=1800, description="How long loading may take.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        default=5,
        description="How often a server that dies is restarted, with growing pauses; requests wait meanwhile.",
    )
    linger_seconds: Annotated[float, Field(ge=0)] = Field(
        default=60, description="How long a server outlives a run that was killed, for the next run to take over."
    )
    log_folder: str | None = Field(
        default=None, description="Where the server's log goes; empty takes labeled.work/logs, next to the output."
    )
    keep: bool = Field(default=False, description="Whether the servers stay up after the run.")

    @field_validator("extra_arguments")
    @classmethod
    def _not_what_fields_say(cls, arguments: list[str]) -> list[str]:
        for argument, following in pairwise([*arguments, "-"]):
            name, equals, _ = argument.partition("=")
            flag = name.replace("_", "-")  # vLLM takes either
            if flag in FIELDS_OF_THEIR_OWN:
                raise ValueError(f"{name} has its own field, {FIELDS_OF_THEIR_OWN[flag]}: set that instead")
            if flag == "--hf-token" and (equals or not following.startswith("-")):
                raise ValueError(f"{name} with a token shows it in `ps`: name HF_TOKEN in environment_from instead")
        return arguments

    @field_validator("environment", mode="before")
    @classmethod
    def _texts_by_name(cls, environment: Any) -> Any:
        given = environment.get_secret_value() if isinstance(environment, Secret) else environment
        if not isinstance(given, dict):
            raise ValueError(f'it is {_kind(given)}, and must be a mapping: write NAME: "value" for each variable')  # noqa: TRY004 - for pydantic
        for name, value in given.items():
            _check_name(name)
            if not isinstance(value, str):
                raise ValueError(f"{name} is {_kind(value)}, and must be text: write its value in quotes")  # noqa: TRY004
            if "\0" in value or not _can_be_encoded(value):
                raise ValueError(
                    f"the value of {name} contains NUL or a lone surrogate, which no environment variable can hold: "
                    "correct it"
                )
        return environment

    @field_serializer("environment", when_used="json")
    def _masked(self, environment: Secret[dict[str, str]]) -> Any:
        """What JSON shows: nothing, or what is refused where it is read as if it were the values."""
        return str(environment) if environment.get_secret_value() else {}

    @field_validator("environment_from")
    @classmethod
    def _names(cls, names: list[str]) -> list[str]:
        for name in names:
            _check_name(name)
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _from_one_place(self) -> Self:
        if twice := sorted(set(self.environment_from) & set(self.variables)):
            raise ValueError(
                f"{', '.join(twice)} stands in both environment and environment_from: remove it from one of them"
            )
        return self

    @model_validator(mode="after")
    def _ports_for_all(self) -> Self:
        if self.port + self.data_parallel_size - 1 > LAST_PORT:
            raise ValueError(
                f"port {self.port} and the {self.data_parallel_size - 1} after it exceed {LAST_PORT}: set a lower port"
            )
        return self

    @property
    def variables(self) -> dict[str, str]:
        """`environment`, with its secret values."""
        return self.environment.get_secret_value()

    def secret_variables(self) -> list[str]:
        """Names in `environment` whose value may be a secret."""
        return [name for name, value in self.variables.items() if names_secret(name) or len(value) >= SHORTEST_SECRET]

    def secret_values(self) -> list[str]:
        """What no message may show: secrets in `environment`, and in the environment that vLLM inherits."""
        return [*secrets_in(), *secrets_in(self.variables)]

    def without_secrets(self) -> dict[str, Any]:
        """The fields that are not at their default, without secrets: these variables have to come from elsewhere."""
        fields = self.model_dump(mode="json", exclude={"environment", "environment_from"}, exclude_defaults=True)
        secret = self.secret_variables()
        variables = {
            "environment": {name: value for name, value in self.variables.items() if name not in secret},
            "environment_from": [*self.environment_from, *secret],
        }
        return fields | {name: value for name, value in variables.items() if value}

    def urls(self) -> list[str]:
        """The replicas' base URLs, for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        return [f"http://{host}:{port}/v1" for port in self.ports()]

    def ports(self) -> list[int]:
        """One port per replica."""
        return [self.port + replica for replica in range(self.data_parallel_size)]

    def served_name(self, model: str | None) -> str:
        """The name that requests use: `model`, or the last part of the path."""
        path = Path(self.model_path).expanduser()
        return model or (path.resolve() if path.is_dir() else path).name


def _check_name(name: Any) -> None:
    """Raises ValueError if no environment variable can have this name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        shown = str(name).partition("=")[0]  # the rest may be a secret
        raise ValueError(
            f"{shown[:60]!r} is not the name of an environment variable (letters, digits and _, no digit first): write "
            "the name alone, without its value"
        )


def _kind(value: Any) -> str:
    """What a value is, without showing it."""
    return "empty" if value is None else f"of type {type(value).__name__}"


def _can_be_encoded(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
