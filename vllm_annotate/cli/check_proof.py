"""`vllm-annotate check-server --proof`: asks a running server what it sees and where it points, and changes nothing.

Exit codes: 0 proven, 1 in doubt, 2 its boxes would be wrong, or it does not answer.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.jobs import checked
from vllm_annotate.errors import ServerRefused, UsageError
from vllm_annotate.inference.client import Inference
from vllm_annotate.proof.finding import Finding
from vllm_annotate.proof.prove import Prover, identify
from vllm_annotate.recipe.families import names_family, resolve_family
from vllm_annotate.recipe.fingerprint import fingerprint
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.settings import Server
from vllm_annotate.storage.yaml_fields import read_fields
from vllm_annotate.version import VERSION

TIMEOUT_SECONDS = 120  # of a request


def run(options: Mapping[str, Any], console: Console) -> int:
    """Shows the findings; returns the exit code."""
    if wrong := [name for name in Launch.model_fields if name in options]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise UsageError(f"--proof asks a server that runs, and {flags} would start one: leave out one or the other")
    known = read_fields(Path(options["server"]), "server", Server) if "server" in options else {}
    named = {"endpoints": options.get("api_base"), "model": options.get("model_name")}
    server = checked(Server, known | {name: value for name, value in named.items() if value}, "server")
    shown = asyncio.run(_prove(server, recipe_of(options), console))
    console.show(json.dumps(shown, ensure_ascii=False, indent=2) if options.get("json") else _text(shown))
    findings = [Finding.model_validate(entry) for entry in shown["endpoints"].values() if entry]
    if len(findings) < len(shown["endpoints"]) or any(finding.refused for finding in findings):
        return 2
    return 0 if all(finding.is_proven for finding in findings) else 1


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """The recipe that the options name."""
    fields = read_fields(Path(options["recipe"]), "recipe", Recipe) if "recipe" in options else {}
    return checked(Recipe, fields, "recipe")


async def _prove(server: Server, recipe: Recipe, console: Console) -> dict[str, Any]:
    urls, key = server.urls(), server.resolved_api_key()
    async with Inference(urls, key, request_timeout_seconds=TIMEOUT_SECONDS, warn=console.say) as inference:
        model, endpoints = await inference.check(server.expected_model()), inference.pool.endpoints
        if not names_family(recipe.family, model):
            family = await identify(endpoints, recipe, model, console.say)
            recipe = recipe.model_copy(update={"family": family.name})
        prover = Prover(recipe, resolve_family(recipe.family, model), model)
        for endpoint in endpoints:
            try:
                await prover.prove(endpoint)
            except ServerRefused:  # in the finding
                continue
        versions = await inference.versions(model)
    return {
        "vllm_annotate": VERSION,
        "model": model,
        "recipe": fingerprint(recipe, model),
        "endpoints": {
            url: _shown(prover.findings[url]) | {"server": versions[url]} if url in prover.findings else {}
            for url in urls
        },
    }


def _shown(finding: Finding) -> dict[str, Any]:
    return finding.model_dump(mode="json") | {"text": finding.sentences()}


def _text(shown: Mapping[str, Any]) -> str:
    lines = [f"vllm-annotate {shown['vllm_annotate']}, model {shown['model']}, recipe {shown['recipe']}"]
    for url, entry in shown["endpoints"].items():
        if not entry:
            lines += ["", f"{url} does not answer"]
            continue
        version = entry["server"].get("version")
        lines += ["", f"{url}{f', vLLM {version}' if version else ''}, family {entry['family']}"]
        lines += [f"  {sentence}" for sentence in entry["text"]]
        lines += [f"  REFUSED: {entry['refused']}"] if entry["refused"] else []
        counts = [f"{width}×{height} {tokens}" for width, height, tokens in entry["sees"]["counts"]]
        lines += [f"  prompt tokens by size: {', '.join(counts)}"] if counts else []
        fits = [f"{space} {fit:.2f}" for space, fit in entry["points"]["fits"].items()]
        lines += [f"  IoU by space: {', '.join(fits)}"] if fits else []
    return "\n".join(lines)
