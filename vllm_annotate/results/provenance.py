"""Which recipes, models and servers made an output. Also in report.json: work folders get deleted."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_annotate.storage.atomic import read_json
from vllm_annotate.version import VERSION

MAX_MAKERS = 100  # per output
PERIOD = ("first", "last")  # all other fields identify a maker
SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")  # in the path of a model in a Hugging Face cache
Makers = list[dict[str, Any]]


def maker(
    recipe: str, settings: dict[str, Any], model: str, servers: Mapping[str, Mapping[str, Any]], started: str
) -> dict[str, Any]:
    """Returns what a run used for its answers. `servers` has what each endpoint reports about itself.

    The model's revision is known if the server's model is a snapshot in a Hugging Face cache; else it is None.
    """
    roots = [str(server["model_root"]) for server in servers.values() if server.get("model_root")]
    snapshot = SNAPSHOT.search(roots[0]) if roots else None
    return {
        "recipe": recipe,
        "settings": settings,
        "model": model,
        "model_root": roots[0] if roots else None,
        "model_revision": snapshot[1] if snapshot else None,
        "vllm": sorted({str(server["version"]) for server in servers.values() if server.get("version")}),
        "vllm_annotate": VERSION,
        "first": started,
        "last": started,
    }


def made_by(*lists: Any) -> Makers:
    """Returns all makers of an output, each once, by their start. Ignores entries that are not makers."""
    makers: Makers = []
    for entry in (entry for entries in lists if isinstance(entries, list) for entry in entries):
        if not (isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("recipe", *PERIOD))):
            continue
        same = next((other for other in makers if _identity(other) == _identity(entry)), None)
        if same is None:
            makers.append(dict(entry))
        else:
            same["first"], same["last"] = min(same["first"], entry["first"]), max(same["last"], entry["last"])
    return sorted(makers, key=lambda entry: str(entry["first"]))[-MAX_MAKERS:]


def makers_in(report: Path) -> Makers:
    """Returns the makers in a report.json; empty if it is missing or damaged."""
    try:
        return made_by((read_json(report) or {}).get("made_by"))
    except ValueError:
        return []


def model_of(output: Path) -> str:
    """Returns the model that last added to an output, from the report beside it; empty if unknown."""
    makers = makers_in(output.with_name(f"{output.stem}.report.json"))
    return str(makers[-1].get("model") or "") if makers else ""


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in PERIOD}
