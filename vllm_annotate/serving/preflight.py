"""Checks before the slow start of vLLM whether it will fail, why, and what would work instead."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.recipe.image_budget import ImageBudget
from vllm_annotate.serving.command import find_version, is_as_good, serve_command, server_environment
from vllm_annotate.serving.fit import DEFAULT_UTILIZATION, Split, need, split_problems, suggestion
from vllm_annotate.serving.gpus import Gpu, find_gpus
from vllm_annotate.serving.launch import MAX_MODEL_LEN, Launch
from vllm_annotate.serving.listeners import is_a_strangers, stranger_behind
from vllm_annotate.serving.model_config import GIB, ModelConfig, find_config, read_config
from vllm_annotate.serving.probe import port_is_taken, port_is_taken_by, served_models
from vllm_annotate.serving.record import read_record, record_path

FROM_CHECKPOINT = ("awq", "gptq", "compressed-tensors")  # need quantized weight files
HIDDEN_VARIABLES = ("PATH", "VLLM_API_KEY")


@dataclass(frozen=True)
class Replica:
    """One server to start."""

    launch: Launch
    url: str  # base URL, with /v1
    port: int
    model: str  # its name in requests
    api_key: str
    command: list[str]
    environment: dict[str, str]  # in addition to this process's


@dataclass
class Preflight:
    """The findings; the servers can start if there are no problems."""

    launch: Launch
    model_name: str
    api_key: str
    budget: ImageBudget | None = None
    allowed_gpus: Sequence[Gpu] = ()
    gpus: Sequence[Gpu] = ()  # the ones to use
    model: ModelConfig | None = None
    max_model_len: int = MAX_MODEL_LEN
    replicas: list[Replica] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def split(self) -> Split:
        """How the launch splits the model."""
        launch = self.launch
        return Split(launch.tensor_parallel_size, launch.pipeline_parallel_size, launch.data_parallel_size)

    def check(self) -> None:
        """Raises UsageError with every problem and its remedy."""
        if self.problems:
            raise UsageError("; ".join(self.problems))

    def text(self) -> str:
        """A report for the terminal: findings and command lines."""
        lines = [*self.notes, *(f"PROBLEM: {problem}" for problem in self.problems)]
        for url, command in self._commands().items():
            lines += ["", f"# {self.model_name} at {url}", command]
        return "\n".join(lines)

    def shown(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"notes": self.notes, "problems": self.problems, "commands": self._commands()}

    def _commands(self) -> dict[str, str]:
        """The command lines by URL, without secrets; none if there are problems."""
        own, commands = [*self.launch.variables, *self.launch.environment_from], {}  # may be secrets
        for replica in [] if self.problems else self.replicas:
            shown = {name: value for name, value in replica.environment.items() if name not in HIDDEN_VARIABLES}
            settings = [f"{name}={'…' if name in own else shlex.quote(value)}" for name, value in shown.items()]
            commands[replica.url] = " ".join([*settings, shlex.join(replica.command)])
        return commands


def preflight(
    launch: Launch,
    model_name: str | None,
    api_key: str,
    assumed_gpus: Sequence[Gpu] | None = None,
    budget: ImageBudget | None = None,
) -> Preflight:
    """Checks everything that decides whether the servers will start.

    `assumed_gpus` are another machine's; `budget` is the size of images that the servers shall see.
    """
    found = Preflight(launch, launch.served_name(model_name), api_key, budget)
    if sys.platform != "linux":
        found.problems.append("vLLM can only be started on Linux: start it elsewhere and add its URL to endpoints")
    _find_model(found)
    _find_gpus(found, assumed_gpus)
    _plan_replicas(found)
    if assumed_gpus is None:  # another machine has another environment
        _check_environment(found)
    running = 0 if assumed_gpus is not None else _check_ports(found)
    if running < launch.data_parallel_size:
        _check_fit(found)
        if assumed_gpus is None and not running:  # running replicas already hold their memory
            _check_free_memory(found)
    if launch.allowed_media_folder is not None:
        found.notes.append("allowed_media_folder has no effect: images travel with the request; remove it")
    return found


def _check_environment(found: Preflight) -> None:
    for name in found.launch.environment_from:
        if not os.environ.get(name):
            found.problems.append(
                f"environment_from names {name}, which is not set here: set it in the environment of the command, or "
                "of the worker that runs the flow, or remove it from environment_from"
            )


def _find_model(found: Preflight) -> None:
    launch = found.launch
    try:
        path = find_config(launch.model_path)
        found.model = read_config(path) if path is not None else None
        if path is None:
            found.notes.append(f"{launch.model_path} is not on this machine: vLLM will download it, unchecked")
    except (UsageError, OSError) as error:
        found.problems.append(str(error))
    except ValueError as error:
        found.notes.append(f"the model's config.json lacks fields ({error}): its fit is not checked")
    if found.model is None:
        found.max_model_len = launch.max_model_len or MAX_MODEL_LEN
        return
    _check_quantization(found, found.model)
    limit = found.model.max_model_len
    if limit is not None and launch.max_model_len is not None and launch.max_model_len > limit:
        found.problems.append(
            f"max_model_len {launch.max_model_len} exceeds the model's limit of {limit}: lower it to that"
        )
    found.max_model_len = launch.max_model_len or min(MAX_MODEL_LEN, limit or MAX_MODEL_LEN)


def _check_quantization(found: Preflight, model: ModelConfig) -> None:
    wanted, there = found.launch.quantization, model.quantization
    if wanted is None:
        return
    if there is None and wanted.startswith(FROM_CHECKPOINT):
        found.problems.append(
            f"quantization is {wanted}, but {model.name} is not quantized: leave it empty, or use its {wanted} version"
        )
    elif there is not None and not (wanted.startswith(there) or there in wanted):
        found.problems.append(f"quantization is {wanted}, but {model.name} is quantized with {there}: leave it empty")


def _find_gpus(found: Preflight, assumed: Sequence[Gpu] | None) -> None:
    """Finds the GPUs that may be used and chooses those with the most free memory."""
    gpus, why_none = find_gpus() if assumed is None else (list(assumed), "")
    wanted = found.launch.gpus if found.launch.gpus is not None or assumed is not None else visible_gpus()
    if wanted is not None and (missing := sorted(set(wanted) - {gpu.index for gpu in gpus})):
        there = ", ".join(str(gpu.index) for gpu in gpus) or f"none ({why_none})"
        found.problems.append(
            f"GPU {', '.join(map(str, missing))} does not exist; this machine has {there}: set gpus to these"
        )
    if not gpus:
        found.notes.append(
            f"no NVIDIA GPU is visible ({why_none}): only a vLLM built for other hardware can start here"
        )
    found.allowed_gpus = [gpu for gpu in gpus if wanted is None or gpu.index in wanted]
    freest = sorted(found.allowed_gpus, key=lambda gpu: -gpu.free)[: found.split.gpus]
    found.gpus = sorted(freest, key=lambda gpu: gpu.index)
    found.notes += [f"GPU {gpu.index}: {gpu.name}, {gpu.memory / GIB:.1f} GiB" for gpu in found.gpus]


def visible_gpus() -> list[int] | None:
    """The indices in CUDA_VISIBLE_DEVICES; None for all."""
    indices = [index.strip() for index in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return [int(index) for index in indices] if all(index.isdecimal() for index in indices) else None


def _check_ports(found: Preflight) -> int:
    """Counts the replicas that run already; records a problem for anything else on their ports."""
    running = 0
    for replica in found.replicas:
        if stranger := stranger_behind(replica.url):
            found.problems.append(is_a_strangers(replica.url, stranger))
            continue
        models, record = served_models(replica.url, found.api_key), read_record(record_path(replica.port))
        same = record is None or is_as_good(record.command, replica.command)
        if models is not None and found.model_name in models and same:
            found.notes.append(f"{replica.url} already serves {found.model_name}: it will be used")
            running += 1
        elif record is not None:
            found.notes.append(f"port {replica.port} has a server of an earlier run (process {record.pid})")
            running += 1
        elif models is not None or port_is_taken(found.launch.host, replica.port):
            found.problems.append(port_is_taken_by(found.launch.host, replica.port, models, found.api_key))
    return running


def _check_fit(found: Preflight) -> None:
    launch, model, split, allowed = found.launch, found.model, found.split, found.allowed_gpus
    utilization = launch.gpu_memory_utilization
    problems = split_problems(model, split) if model is not None else []
    if allowed and not problems and split.gpus > len(allowed):
        problems = [f"{split.gpus} GPUs needed for {split}, {len(allowed)} available"]
    if allowed and not problems and model is not None:
        needed = need(model, split, found.max_model_len, found.gpus, utilization)
        found.notes.append(f"each GPU needs about {needed}")
        if not needed.fits:
            problems = [f"{model.name} does not fit as {split}: {needed}"]
        elif needed.is_tight:
            found.notes.append("that is tight: if it fails, lower max_model_len or split over more GPUs")
    if not problems:
        return
    if model is None:
        remedy = "lower tensor_parallel_size, pipeline_parallel_size or data_parallel_size"
    else:
        remedy = suggestion(model, found.max_model_len, allowed, utilization) if allowed else _any_split(model)
    found.problems.append(f"{problems[0]}: {remedy}")


def _any_split(model: ModelConfig) -> str:
    sizes = [size for size in range(1, model.heads + 1) if not split_problems(model, Split(size))]
    return f"TP can be {', '.join(map(str, sizes[:8]))}; or use replicas, or PP"


def _check_free_memory(found: Preflight) -> None:
    share = found.launch.gpu_memory_utilization or DEFAULT_UTILIZATION
    for gpu in found.gpus:
        if gpu.free < share * gpu.memory:
            found.problems.append(
                f"GPU {gpu.index} has only {gpu.free / GIB:.1f} of {gpu.memory / GIB:.1f} GiB free and vLLM would use "
                f"{share:.0%}: stop what uses it (see nvidia-smi), choose other gpus, or lower gpu_memory_utilization"
            )


def _plan_replicas(found: Preflight) -> None:
    launch = found.launch
    try:
        version, text = find_version(launch.executable)
    except UsageError as error:
        found.problems.append(str(error))
        return
    found.notes.insert(0, f"vLLM {text}")
    each = launch.tensor_parallel_size * launch.pipeline_parallel_size
    for number, url in enumerate(launch.urls()):
        port, gpus = launch.port + number, [gpu.index for gpu in found.gpus[number * each : (number + 1) * each]]
        command, notes = serve_command(launch, version, found.model_name, port, found.max_model_len, found.budget)
        found.notes += [note for note in notes if note not in found.notes]
        environment = server_environment(launch, gpus, found.api_key)
        found.replicas.append(Replica(launch, url, port, found.model_name, found.api_key, command, environment))
