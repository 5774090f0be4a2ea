"""`python -m flows.serving`: what would be started, and whether it would work. Nothing is started.

Exit codes: 0 it would, 2 it would not, for the reasons printed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from vllm_annotate.errors import UsageError
from vllm_annotate.serving.gpus import Gpu
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.model_config import GIB
from vllm_annotate.serving.preflight import preflight
from vllm_annotate.storage.yaml_fields import read_fields


def parser() -> argparse.ArgumentParser:
    """The options: the fields of Launch, and where to find them in a file."""
    options = argparse.ArgumentParser(
        prog="python -m flows.serving",
        description="Shows the command lines with which vLLM would be started, and checks that it would work: model, "
        "GPUs, memory, ports, version. Starts nothing.",
    )
    options.add_argument("--server", metavar="FILE", help="YAML file with fields of the server, of which start is one")
    options.add_argument("--model-name", help="name of the served model (default: that of its folder)")
    options.add_argument("--assume-gpus", metavar="NxGIB", help="as if this machine had other GPUs, such as 3x24")
    for name, field in Launch.model_fields.items():
        flag, kind = f"--{name.replace('_', '-')}", _kind(field.annotation)
        if kind is bool:
            options.add_argument(flag, action="store_const", const=True, help=field.description)
        elif kind is not dict:
            many = {"nargs": "*"} if kind is list else {}
            options.add_argument(flag, help=field.description, **many)  # type: ignore[arg-type]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was found and returns the exit code."""
    options = {name: value for name, value in vars(parser().parse_args(arguments)).items() if value is not None}
    try:
        model, launch = _launch(options)
        assumed = _gpus(options["assume_gpus"]) if "assume_gpus" in options else None
        found = preflight(launch, options.get("model_name", model), "", assumed)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(found.text())
    return 2 if found.problems else 0


def _launch(options: dict[str, Any]) -> tuple[str | None, Launch]:
    """The model's name and the settings, from the file and, over it, from the options."""
    from blocks import VLLMServer

    fields = read_fields(Path(options["server"]), "server", VLLMServer) if "server" in options else {}
    start = fields.get("start")
    given = {name: options[name] for name in Launch.model_fields if name in options}
    if given and (start is None or isinstance(start, dict)):
        fields["start"] = (start or {}) | given
    if fields.get("start") is None or fields["start"] == {}:
        raise UsageError("which model? Set --model-path, or start.model_path in the file of --server")
    try:
        server = VLLMServer(**fields)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False))
        raise UsageError("; ".join(problems)) from None
    assert server.start is not None  # noqa: S101 - for the type checker
    return server.model, server.start


def _gpus(text: str) -> list[Gpu]:
    """`3x24` → three GPUs of 24 GiB."""
    count, _, size = text.lower().partition("x")
    try:
        memory = int(float(size) * GIB)
        return [Gpu(index, "assumed", memory, memory) for index in range(int(count))]
    except (ValueError, OverflowError):
        raise UsageError(f"--assume-gpus {text!r} is not of the form 3x24: number of GPUs x GiB of each") from None


def _kind(annotation: Any) -> type:
    """The type that an annotation means, without its None."""
    if get_origin(annotation) in (Union, UnionType):
        return _kind(next(one for one in get_args(annotation) if one is not NoneType))
    return get_origin(annotation) if get_origin(annotation) in (list, dict) else annotation  # type: ignore[no-any-return]
