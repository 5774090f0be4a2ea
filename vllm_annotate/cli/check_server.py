"""`vllm-annotate check-server`: shows what would be started, and whether it would work. Starts nothing.

Exit codes: 0 it would work, 2 it would not, for the reasons printed. `--proof` asks a server that runs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App

from vllm_annotate.cli import check_proof
from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.jobs import checked
from vllm_annotate.cli.options import command, fields, option
from vllm_annotate.errors import UsageError
from vllm_annotate.serving.gpus import Gpu
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.model_config import GIB
from vllm_annotate.serving.preflight import preflight
from vllm_annotate.serving.settings import Server
from vllm_annotate.storage.yaml_fields import read_fields


def app() -> App:
    """The command's options: those of its own and the fields of Launch."""
    text = (
        "Show the command lines with which vLLM would be started, and check that it would work: model, GPUs, memory, "
        "ports, version. Starts nothing. With --proof, ask a server that runs what it sees and where its boxes point."
    )
    own = [
        option("proof", "Prove a server that runs, with drawn scenes, before you give it images. Exit codes: 0 "
               "proven, 1 in doubt, 2 its boxes would be wrong.", bool),
        option("api_base", "Base URL of a server to prove; several for several servers. (default: "
               "http://localhost:8000/v1)", list),
        option("recipe", "YAML file with the recipe's fields. (default: the built-in recipe)"),
        option("json", "Print JSON, fit for a bug report.", bool),
        option("server", "YAML file with the server's fields."),
        option("model_name", "Name of the served model. (default: the name of its folder)"),
        option("assume_gpus", "Pretend that this machine has other GPUs: NUMBERxGIB, such as 3x24."),
    ]  # fmt: skip
    return command("check-server", text, [*own, *fields(Launch)])


def run(given: Mapping[str, Any], console: Console, _interrupts: Interrupts) -> int:
    """Prints the findings; returns the exit code."""
    options = {name: value for name, value in given.items() if value is not None}
    if options.get("proof"):
        return check_proof.run(options, console)
    if "api_base" in options:
        raise UsageError("--api-base names a server that runs: add --proof to prove it, or leave it out")
    model, launch = _launch(options)
    assumed = _gpus(options["assume_gpus"]) if "assume_gpus" in options else None
    name = options.get("model_name", model)
    budget = check_proof.recipe_of(options).servers_budget(launch.served_name(name))
    found = preflight(launch, name, "", assumed, budget)
    console.show(json.dumps(found.shown(), ensure_ascii=False, indent=2) if options.get("json") else found.text())
    return 2 if found.problems else 0


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "nothing was started"


def _launch(options: dict[str, Any]) -> tuple[str | None, Launch]:
    """The model's name and the settings; options override the file."""
    known = read_fields(Path(options["server"]), "server", Server) if "server" in options else {}
    start = known.get("start")
    given = {name: options[name] for name in Launch.model_fields if name in options}
    if given and (start is None or isinstance(start, dict)):
        known["start"] = (start or {}) | given
    if known.get("start") is None or known["start"] == {}:
        raise UsageError("no model: set --model-path, or start.model_path in the file of --server")
    server = checked(Server, known, "server")
    assert server.start is not None  # noqa: S101 - for the type checker
    return server.model, server.start


def _gpus(text: str) -> list[Gpu]:
    """`3x24` → three GPUs of 24 GiB."""
    count, _, size = text.lower().partition("x")
    try:
        memory = int(float(size) * GIB)
        return [Gpu(index, "assumed", memory, memory) for index in range(int(count))]
    except (ValueError, OverflowError):
        raise UsageError(f"--assume-gpus {text!r} is not of the form NUMBERxGIB, such as 3x24") from None
