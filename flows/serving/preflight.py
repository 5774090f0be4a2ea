"""What can be known before the minutes-long start: whether it will fail, why, and what would work here instead."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.errors import UsageError
from flows.serving.command import find_version, serve_command, server_environment
from flows.serving.fit import DEFAULT_UTILIZATION, Split, need, split_problems, suggestion
from flows.serving.gpus import Gpu, find_gpus
from flows.serving.launch import MAX_MODEL_LEN, Launch
from flows.serving.model_config import GIB, ModelConfig, find_config, read_config
from flows.serving.probe import free_port_after, port_is_taken, served_models
from flows.serving.record import read_record, record_path

FROM_CHECKPOINT = ("awq", "gptq", "compressed-tensors")  # what only the files of a model can bring
HIDDEN_VARIABLES = ("PATH", "VLLM_API_KEY")


@dataclass(frozen=True)
class Replica:
    """One server to be started."""

    launch: Launch
    url: str  # base URL, with /v1
    port: int
    model: str  # its name in requests
    api_key: str
    command: list[str]
    environment: dict[str, str]  # beside that of this process


@dataclass
class Preflight:
    """What was found; the servers may start if there are no problems."""

    launch: Launch
    model_name: str
    api_key: str
    gpus: Sequence[Gpu] = ()
    model: ModelConfig | None = None
    max_model_len: int = MAX_MODEL_LEN
    replicas: list[Replica] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises UsageError with every problem and its remedy."""
        if self.problems:
            raise UsageError("; ".join(self.problems))

    def text(self) -> str:
        """For people: what was found, and the command lines."""
        lines = [*self.notes, *(f"PROBLEM: {problem}" for problem in self.problems)]
        for replica in [] if self.problems else self.replicas:
            shown = {name: value for name, value in replica.environment.items() if name not in HIDDEN_VARIABLES}
            settings = [f"{name}={shlex.quote(value)}" for name, value in shown.items()]
            lines += ["", f"# {replica.model} at {replica.url}", " ".join([*settings, shlex.join(replica.command)])]
        return "\n".join(lines)


def preflight(
    launch: Launch, model_name: str | None, api_key: str, assumed_gpus: Sequence[Gpu] | None = None
) -> Preflight:
    """Looks at everything that decides whether the servers will start; with `assumed_gpus` for another machine."""
    found = Preflight(launch, launch.served_name(model_name), api_key)
    if sys.platform != "linux":
        found.problems.append("vLLM is started on Linux only: start it elsewhere and name it under endpoints")
    _find_model(found)
    _find_gpus(found, assumed_gpus)
    serving = assumed_gpus is None and _check_ports(found)
    if not serving:
        _check_fit(found)
        if assumed_gpus is None:
            _check_free_memory(found)
    folder = launch.allowed_media_folder
    if folder is not None and not Path(folder).is_dir():
        found.problems.append(f"allowed_media_folder {folder} is no folder: name the one with the images")
    _plan_replicas(found)
    return found


def _find_model(found: Preflight) -> None:
    launch = found.launch
    try:
        path = find_config(launch.model_path)
        found.model = read_config(path) if path is not None else None
    except (UsageError, OSError) as error:
        found.problems.append(str(error))
        return
    if found.model is None:
        found.notes.append(f"{launch.model_path} is not on this machine: vLLM will download it, and nothing is checked")
    else:
        _check_quantization(found, found.model)
    limit = found.model.max_model_len if found.model is not None else None
    if limit is not None and launch.max_model_len is not None and launch.max_model_len > limit:
        found.problems.append(
            f"max_model_len {launch.max_model_len} is more than the model's own {limit}: set at most that"
        )
    found.max_model_len = launch.max_model_len or min(MAX_MODEL_LEN, limit or MAX_MODEL_LEN)


def _check_quantization(found: Preflight, model: ModelConfig) -> None:
    wanted, there = found.launch.quantization, model.quantization
    if wanted is None:
        return
    if there is None and wanted.startswith(FROM_CHECKPOINT):
        found.problems.append(
            f"quantization {wanted}, but {model.name} is not quantized: leave it empty, or take its {wanted} version"
        )
    elif there is not None and not (wanted.startswith(there) or there in wanted):
        found.problems.append(f"quantization {wanted}, but {model.name} is quantized as {there}: leave it empty")


def _find_gpus(found: Preflight, assumed: Sequence[Gpu] | None) -> None:
    gpus, why_none = find_gpus() if assumed is None else (list(assumed), "")
    wanted = found.launch.gpus
    if wanted is not None and (missing := sorted(set(wanted) - {gpu.index for gpu in gpus})):
        there = ", ".join(str(gpu.index) for gpu in gpus) or f"none ({why_none})"
        found.problems.append(
            f"GPU {', '.join(map(str, missing))} is not there, this machine has {there}: set gpus to these"
        )
    found.gpus = [gpu for gpu in gpus if wanted is None or gpu.index in wanted]
    if not gpus:
        found.notes.append(
            f"no NVIDIA GPU is visible ({why_none}): only a vLLM built for something else can start here"
        )
    found.notes += [f"GPU {gpu.index}: {gpu.name}, {gpu.memory / GIB:.1f} GiB" for gpu in found.gpus]


def _check_ports(found: Preflight) -> bool:
    """Whether every replica's port already serves the model. What else sits on a port is a problem."""
    serving = []
    for number, url in enumerate(found.launch.urls()):
        models = served_models(url, found.api_key)
        serving.append(models is not None and found.model_name in models)
        if serving[-1]:
            found.notes.append(f"{url} already serves {found.model_name}: it will be used")
        elif models is not None or port_is_taken(found.launch.host, found.launch.port + number):
            _note_taken_port(found, found.launch.port + number, models)
    return all(serving)


def _note_taken_port(found: Preflight, port: int, models: list[str] | None) -> None:
    if (record := read_record(record_path(port))) is not None:
        found.notes.append(
            f"port {port} has a server that an earlier run has left (process {record.pid}): it will be ended"
        )
        return
    what = f"a server of {', '.join(models)}" if models else "another program"
    free = free_port_after(found.launch.host, port)
    found.problems.append(
        f"port {port} is taken by {what}: set port to a free one, such as {free}, or end that program"
    )


def _check_fit(found: Preflight) -> None:
    launch, model, gpus = found.launch, found.model, found.gpus
    if model is None:
        return
    split = Split(launch.tensor_parallel_size, launch.pipeline_parallel_size, launch.data_parallel_size)
    problems = split_problems(model, split)
    if gpus and not problems:
        if split.gpus > len(gpus):
            problems = [f"{split} takes {split.gpus} GPUs of {len(gpus)}"]
        else:
            needed = need(model, split, found.max_model_len, gpus, launch.gpu_memory_utilization)
            found.notes.append(f"each GPU needs about {needed}")
            if not needed.fits:
                problems = [f"{model.name} does not fit as {split}: {needed}"]
            elif needed.is_tight:
                found.notes.append("that is tight: should it fail, lower max_model_len or split over more GPUs")
    if problems:
        remedy = (
            suggestion(model, found.max_model_len, gpus, launch.gpu_memory_utilization) if gpus else _any_split(model)
        )
        found.problems.append(f"{problems[0]}: {remedy}")


def _any_split(model: ModelConfig) -> str:
    sizes = [size for size in range(1, model.heads + 1) if not split_problems(model, Split(size))]
    return f"TP can be {', '.join(map(str, sizes[:8]))}; or use replicas, or PP"


def _check_free_memory(found: Preflight) -> None:
    share = found.launch.gpu_memory_utilization or DEFAULT_UTILIZATION
    for gpu in found.gpus:
        if gpu.free < share * gpu.memory:
            found.problems.append(
                f"GPU {gpu.index} has only {gpu.free / GIB:.1f} of {gpu.memory / GIB:.1f} GiB free and vLLM would take "
                f"{share:.0%}: end what uses it (see nvidia-smi), choose other gpus, or lower gpu_memory_utilization"
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
        command, notes = serve_command(launch, version, found.model_name, port, found.max_model_len)
        found.notes += [note for note in notes if note not in found.notes]
        environment = server_environment(launch, gpus, found.api_key)
        found.replicas.append(Replica(launch, url, port, found.model_name, found.api_key, command, environment))
