"""Builds the command line that a given version of vLLM understands.

The versions at which flags appear and disappear are from the sources of vLLM 0.5.2 to 0.32.0.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.recipe.image_budget import ImageBudget
from vllm_annotate.serving.launch import Launch
from vllm_annotate.storage.json_text import json_object

BUDGET_FLAG = "--mm-processor-kwargs"
VERSION_SECONDS = 180  # `vllm --version` imports PyTorch
Version = tuple[int, int, int]
NEWEST = (999, 0, 0)


@lru_cache
def find_version(executable: str) -> tuple[Version, str]:
    """Returns the version of vLLM, as numbers and as text; cached, as the command takes seconds.

    Raises UsageError if vLLM is missing or broken.
    """
    try:
        result = subprocess.run(
            [_found(executable), "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False
        )
    except FileNotFoundError:
        raise UsageError(
            f"command {executable!r} not found: install vLLM (pip install vllm), preferably in its own environment, "
            "and set executable to its bin/vllm"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{executable} --version failed ({error}): reinstall vLLM") from None
    # Log lines may come first, on the same stream.
    found = re.findall(r"^(\d+)\.(\d+)(?:\.(\d+))?(\S*)$", result.stdout, re.MULTILINE)
    if result.returncode or not found:
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:] or ["no output"]
        raise UsageError(f"{executable} --version failed ({last[0][:300]}): reinstall vLLM, version 0.6.5 or later")
    major, minor, patch, rest = found[-1]
    return (int(major), int(minor), int(patch or 0)), f"{major}.{minor}.{patch or 0}{rest}"


@dataclass(frozen=True)
class Gone:
    """A flag that later versions removed, and its replacement for a given value."""

    last: Version
    instead: Callable[[str], list[str]] = lambda _: []
    takes_value: bool = True


def _structured(**settings: object) -> list[str]:
    return ["--structured-outputs-config", json.dumps(settings)]


GONE = {
    "--disable-log-requests": Gone((0, 10, 0), takes_value=False),  # accepted without effect until 0.16
    "--guided-decoding-backend": Gone((0, 10, 2), lambda value: _structured(backend=value.partition(":")[0])),
    "--guided-decoding-disable-any-whitespace": Gone(
        (0, 10, 2), lambda _: _structured(backend="guidance", disable_any_whitespace=True), takes_value=False
    ),
    "--disable-mm-preprocessor-cache": Gone((0, 10, 0), lambda _: ["--mm-processor-cache-gb", "0"], takes_value=False),
    "--task": Gone((0, 10, 0), lambda value: [] if value in ("auto", "generate") else ["--runner", value]),
    "--worker-use-ray": Gone((0, 6, 6), lambda _: ["--distributed-executor-backend", "ray"], takes_value=False),
    "--enable-reasoning": Gone((0, 9, 2), takes_value=False),
    "--use-v2-block-manager": Gone((0, 9, 2), takes_value=False),
    "--engine-use-ray": Gone((0, 6, 1), takes_value=False),
    "--disable-frontend-multiprocessing": Gone((0, 18, 0), takes_value=False),
    "--num-scheduler-steps": Gone((0, 10, 0)),
    "--swap-space": Gone((0, 17, 0)),
    "--device": Gone((0, 9, 2)),
    "--max-seq-len-to-capture": Gone((0, 10, 2)),
    "--preemption-mode": Gone((0, 10, 2)),
    "--tokenizer-pool-size": Gone((0, 9, 2)),
}


def serve_command(
    launch: Launch, version: Version, name: str, port: int, max_model_len: int, budget: ImageBudget | None = None
) -> tuple[list[str], list[str]]:
    """The server's command line, and notes on extra arguments that were changed for this version.

    With a budget, the server resizes images as the client computes it.
    """
    extra, notes = translated(launch.extra_arguments, version)
    given = {re.split("[=.]", argument)[0] for argument in extra}
    ours: list[list[str]] = [
        ["--served-model-name", name],
        ["--host", launch.host],
        ["--port", str(port)],
        ["--max-model-len", str(max_model_len)],
        *_sizes(launch),
        *_for_batches_of_single_images(version),
        *([[BUDGET_FLAG, _pixels(budget)]] if budget is not None and version >= (0, 6, 2) else []),
    ]
    kept = [argument for group in ours if group[0] not in given for argument in group]
    model = str(Path(launch.model_path).expanduser()) if launch.model_path.startswith("~") else launch.model_path
    return [_found(launch.executable), "serve", model, *kept, *extra], notes


def _pixels(budget: ImageBudget) -> str:
    return json.dumps({"min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels})


def is_as_good(running: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a server that was started with one command serves for another.

    They are equal but for the image budget, which the running server may leave to the model, or have a wider one of.
    """
    (rest, budget), (wanted_rest, wanted_budget) = _without_budget(running), _without_budget(wanted)
    if rest != wanted_rest:
        return False
    if budget in ("", wanted_budget):
        return True
    ours, others = json_object(wanted_budget) or {}, json_object(budget) or {}
    least, most = (others.get(name) for name in ("min_pixels", "max_pixels"))
    if others.keys() != ours.keys() or not (isinstance(least, int) and isinstance(most, int)):
        return False
    return bool(least <= ours["min_pixels"] and most >= ours["max_pixels"])


def _without_budget(command: Sequence[str]) -> tuple[list[str], str]:
    """The command without its image budget, and the budget; empty if there is none."""
    if BUDGET_FLAG not in command[:-1]:
        return list(command), ""
    at = command.index(BUDGET_FLAG)
    return [*command[:at], *command[at + 2 :]], command[at + 1]


def _sizes(launch: Launch) -> list[list[str]]:
    options = {
        "--tensor-parallel-size": launch.tensor_parallel_size if launch.tensor_parallel_size > 1 else None,
        "--pipeline-parallel-size": launch.pipeline_parallel_size if launch.pipeline_parallel_size > 1 else None,
        "--gpu-memory-utilization": launch.gpu_memory_utilization,
        "--quantization": launch.quantization,
    }
    groups = [[flag, str(value)] for flag, value in options.items() if value is not None]
    return [*groups, ["--trust-remote-code"]] if launch.trust_remote_code else groups


def _for_batches_of_single_images(version: Version) -> list[list[str]]:
    """Options for this workload: one image per request, never repeated, and JSON answers without padding.

    guidance without free whitespace gave valid JSON in 80 of 80 answers; with the default backend, a model can write
    spaces up to max_tokens.
    """
    groups = [["--limit-mm-per-prompt", '{"image": 1, "video": 0}' if version >= (0, 8, 5) else "image=1"]]
    if version >= (0, 10, 1):
        groups += [["--mm-processor-cache-gb", "0"]]
    elif version >= (0, 6, 6):
        groups += [["--disable-mm-preprocessor-cache"]]
    if version >= (0, 11, 0):
        groups += [_structured(backend="guidance", disable_any_whitespace=True)]
    elif version >= (0, 9, 0):
        groups += [["--guided-decoding-backend", "guidance"], ["--guided-decoding-disable-any-whitespace"]]
    elif version >= (0, 8, 0):
        groups += [["--guided-decoding-backend", "xgrammar:disable-any-whitespace"]]
    if version >= (0, 18, 0):
        groups += [["--shutdown-timeout", "30"]]  # finishes requests in flight
    if version <= (0, 10, 0):
        groups += [["--disable-log-requests"]]  # later versions do not log requests
    return groups


def translated(arguments: Sequence[str], version: Version) -> tuple[list[str], list[str]]:
    """The arguments as this version takes them, and a note for each change."""
    result: list[str] = []
    notes: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        gone = GONE.get(flag)
        if gone is None or version <= gone.last:
            result.append(argument)
            continue
        if gone.takes_value and not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        instead = gone.instead(value)
        result += instead
        since = ".".join(map(str, gone.last))
        notes.append(
            f"{flag} was removed after vLLM {since}: "
            + (f"using {' '.join(instead)} instead" if instead else "left out")
        )
    return result, notes


def server_environment(launch: Launch, gpus: Sequence[int], api_key: str) -> dict[str, str]:
    """The server's extra environment variables. The API key is among them, as arguments show in `ps`."""
    executable = _found(launch.executable)
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if os.sep in executable:  # compilers and helpers of vLLM's own environment
        variables["PATH"] = f"{Path(executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML numbers them
    if api_key:
        variables["VLLM_API_KEY"] = api_key
    taken = {name: os.environ[name] for name in launch.environment_from if name in os.environ}
    return variables | taken | launch.variables


def _found(executable: str) -> str:
    path = shutil.which(os.path.expanduser(executable))  # noqa: PTH111 - keeps a bare name bare
    return os.path.abspath(path) if path is not None else executable  # noqa: PTH100 - does not resolve a venv's links
