"""How vLLM is to be started: the settings."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_MODEL_LEN = 8192  # tokens: an image budget of 1280, a long caption and an answer of 1536 fit well


class Launch(BaseModel):
    """How vLLM is started on the machine that runs the flow; what is left empty is vLLM's own default."""

    model_config = ConfigDict(extra="forbid")

    model_path: str = Field(
        description="Folder of the model, or a Hugging Face name such as Qwen/Qwen2.5-VL-7B-Instruct."
    )
    executable: str = Field(
        default="vllm", description="The vllm command: a name on the PATH, or a path into vLLM's own environment."
    )
    quantization: str | None = Field(
        default=None, description="Empty takes what the model's config.json says, as it should be."
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] = Field(default=1, description="GPUs that share each layer.")
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = Field(
        default=1, description="GPUs that share the layers out among them."
    )
    data_parallel_size: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Replicas: servers of their own on ports that follow each other, each on its own GPUs."
    )
    max_model_len: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description=f"Tokens of the longest request; empty takes {MAX_MODEL_LEN}, or the model's own limit.",
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Share of each GPU's memory that vLLM may take."
    )
    port: Annotated[int, Field(ge=1024, le=65_535)] = Field(default=8000, description="Of the first replica.")
    host: str = Field(default="127.0.0.1", description="Where it listens; 0.0.0.0 lets other machines in.")
    gpus: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, description="Which GPUs (CUDA_VISIBLE_DEVICES); empty takes them all."
    )
    allowed_media_folder: str | None = Field(
        default=None, description="Folder whose images requests may name by file:// paths."
    )
    trust_remote_code: bool = Field(default=False, description="Whether code that comes with the model may run.")
    extra_arguments: list[str] = Field(
        default=[], description="More arguments of vllm serve, one an entry; they win over ours."
    )
    environment: dict[str, str] = Field(default={}, description="More environment variables.")
    start_timeout_seconds: Annotated[float, Field(gt=0)] = Field(default=1800, description="How long loading may take.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        default=5, description="How often a server that dies is started again."
    )
    linger_seconds: Annotated[float, Field(ge=0)] = Field(
        default=60, description="How long a server outlives a run that was killed, for the next one to take it over."
    )
    log_folder: str | None = Field(default=None, description="Empty takes the folder logs in the run's work folder.")
    keep: bool = Field(default=False, description="Whether the servers stay up after the run.")

    def urls(self) -> list[str]:
        """The replicas' base URLs, for clients on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host  # noqa: S104
        return [f"http://{host}:{self.port + replica}/v1" for replica in range(self.data_parallel_size)]

    def served_name(self, model: str | None) -> str:
        """The name that requests use: the block's, or the last part of the path."""
        return model or Path(self.model_path).name
