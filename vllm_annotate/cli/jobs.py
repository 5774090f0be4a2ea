"""Builds a job from options, a job file, and the job that an earlier run remembers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vllm_annotate.cli.options import Option, fields, option
from vllm_annotate.errors import UsageError
from vllm_annotate.job import Job, OutputOf, images_of, remembered_job
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.serving.settings import Server
from vllm_annotate.storage.masking import PASSWORD_IN_URL, names_secret
from vllm_annotate.storage.yaml_fields import check_names, read_fields

MAY_HOLD_SECRETS = ("endpoints", "environment", "extra_arguments")  # fields whose texts may be anything
PARTS: dict[str, type[BaseModel]] = {"server": Server, "recipe": Recipe}  # of a job
SERVER_OPTIONS = {"endpoints": "--api-base", "model": "--model-name"}
SomeModel = TypeVar("SomeModel", bound=BaseModel)


def server_options() -> list[Option]:
    """Options for the server and the recipe."""
    return [
        option("api_base", "Base URL of vLLM; several for several servers. VLLM_API_KEY sets the API key. "
               "(default: http://localhost:8000/v1)", list),
        option("model_name", "Name of the served model. (default: the only one served)"),
        option("server", "YAML file with the server's fields (endpoints, model, start, …), or the name of a saved "
               "VLLMServer block."),
        option("recipe", "YAML file with the recipe's fields, or the name of a saved AnnotationRecipe block. "
               "(default: the built-in recipe)"),
    ]  # fmt: skip


def job_options() -> list[Option]:
    """Options for all fields of a job."""
    of_job = fields(Job, but=("server", "recipe"))
    job = option("job", "YAML file with these options, as `vllm-annotate config` writes it; options override it.")
    return [*of_job[:3], *server_options(), *of_job[3:], job]


def run_options() -> list[Option]:
    """Options for how to run."""
    return [
        option("without_prefect", "Run without Prefect: no server, no history, no artifacts.", bool),
        option("log_json", "Write the log as JSON, one object per line.", bool),
    ]


def read_job(path: Path) -> dict[str, Any]:
    """The fields in a job file. Raises UsageError, also for unknown fields of its server and recipe."""
    fields = read_fields(path, "job", Job)
    for name, model in PARTS.items():
        if isinstance(fields.get(name), dict):
            check_names(fields[name], f"{name} of job {str(path)!r}", model)
    return fields


def job_fields(given: Mapping[str, Any], remembered: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a job: options override the job file, which overrides the remembered job.

    `server` and `recipe` stay names if they are not files. Raises UsageError.
    """
    known = dict(remembered or {})
    if given.get("job") is not None:
        known |= read_job(Path(given["job"]))
    if given.get("server") is not None and (given.get("api_base") or given.get("model_name")):
        raise UsageError("--server cannot be combined with --api-base or --model-name: set them in the server's fields")
    known |= {name: given[name] for name in Job.model_fields if given.get(name) is not None}
    if isinstance(several := known.get("input"), list) and len(several) < 2:
        if not several:
            raise UsageError("option --input requires an argument")
        known["input"] = several[0]
    named = {"endpoints": given.get("api_base"), "model": given.get("model_name")}
    if named := {name: value for name, value in named.items() if value}:
        server = dict(known["server"]) if isinstance(known.get("server"), dict) else {}
        if "endpoints" in named:
            server.pop("start", None)  # these endpoints, not also a server of our own
        known["server"] = server | named
    for name, model in PARTS.items():
        if isinstance(known.get(name), str) and is_file(known[name]):
            known[name] = read_fields(Path(known[name]), name, model)
    return known


def fields_after_run(given: Mapping[str, Any], remembered: Iterable[str], **fixed: Any) -> dict[str, Any]:
    """The fields of a job on the output of an earlier run, which remembers some of them. Raises UsageError."""
    output = checked(OutputOf, {name: value for name, value in given.items() if name == "output"}).output
    known = remembered_job(output)
    remembered = set(remembered)
    images = {"image_root": where} if (where := images_of(known)) else {}
    had = known | images
    found = job_fields({**given, **fixed}, {name: had[name] for name in remembered if name in had})
    if found.get("image_root") == found.get("input"):
        found.pop("image_root", None)
    of_job = Job.model_fields.items()
    required = [name for name, field in of_job if field.is_required()]
    required += ["image_root"] if "image_root" in remembered and "input" not in remembered else []
    if not known and (missing := [f"--{name.replace('_', '-')}" for name in required if name not in found]):
        raise UsageError(f"no run of {output} is recorded beside it: correct --output, or set {' and '.join(missing)}")
    return found


def is_file(name: str) -> bool:
    """Whether a server or recipe is a file, not the name of a block."""
    return Path(name).suffix in (".yaml", ".yml", ".json") or Path(name).exists()


def saved_blocks(known: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a job that name saved blocks."""
    return {name: known[name] for name in ("server", "recipe") if isinstance(known.get(name), str)}


def refuse_blocks(known: Mapping[str, Any], why: str) -> None:
    """Raises UsageError, which ends with `why`, if a field of a job names a saved block."""
    if blocks := saved_blocks(known):
        name, block = next(iter(blocks.items()))
        raise UsageError(f"--{name} {block!r} is not a file, and {why}")


def checked(model: type[SomeModel], values: Mapping[str, Any], part: str = "") -> SomeModel:
    """Validates the values; `part` is the part of the job they belong to. Raises UsageError that names options."""
    try:
        return model(**values)
    except ValidationError as error:
        problems = [complaint(part, dict(problem)) for problem in error.errors(include_url=False)]
        raise UsageError("; ".join(dict.fromkeys(problems))) from None


def complaint(part: str, problem: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a message; hides values that may be secret."""
    path = [str(step) for step in problem["loc"] if not str(step).startswith(("constrained-", "literal[", "function-"))]
    first = path[0] if path else ""
    if part:
        where = f"{part} field {'.'.join(path)}" if path else part
        where = SERVER_OPTIONS.get(first, where) if part == "server" else where
    else:
        where = f"--{first.replace('_', '-')}"
    if problem["type"] == "missing" and not part:
        return f"{where} is required (or {first} in the file of --job)"
    given = f"{problem['input']!r}"
    secret = any(step.startswith(MAY_HOLD_SECRETS) or names_secret(step) for step in path)
    hidden = secret or isinstance(problem["input"], list | dict) or PASSWORD_IN_URL.search(given)
    value = "" if hidden else f" {given:.60}"
    return f"{where}{value}: {problem['msg'].removeprefix('Value error, ')}"


def job_of(known: Mapping[str, Any], server: type[Server] = Server, recipe: type[Recipe] = Recipe) -> Job:
    """The job of these fields; `server` and `recipe` are the classes to use. Raises UsageError."""
    values = dict(known)
    for name, kind in (("server", server), ("recipe", recipe)):
        if isinstance(values.get(name), dict):
            values[name] = checked(kind, values[name], name)
    return checked(Job, values)


def written(known: Mapping[str, Any]) -> str:
    """The fields as the YAML of a job file."""
    return yaml.safe_dump(dict(known), sort_keys=False, allow_unicode=True, width=120)
