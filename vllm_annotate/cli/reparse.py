"""`vllm-annotate reparse`: parses stored answers again, with a newer parser or another family.

Exit codes: 0 every answer has an annotation, 1 some do not, 2 refused, nothing written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.options import command, option
from vllm_annotate.errors import UsageError
from vllm_annotate.recipe.families import FAMILIES


def app() -> App:
    """The command's options."""
    families = ", ".join(sorted(FAMILIES))
    return command(
        "reparse",
        "Re-parse the stored answers of an output, without calling the model.",
        [
            option("input", "An output of annotate."),
            option("output", "The new file; it must not exist."),
            option("family", f"The model's family: {families}. (default: the recipe's)"),
        ],
    )


def run(given: Mapping[str, Any], console: Console, _interrupts: Interrupts) -> int:
    """Parses the answers; returns the exit code."""
    from vllm_annotate.results.reparse import family_of, reparse

    source, target = (Path(given.get(name) or "") for name in ("input", "output"))
    if missing := [f"--{name}" for name in ("input", "output") if not given.get(name)]:
        raise UsageError(f"{' and '.join(missing)}: required")
    if (name := given.get("family")) not in (None, *FAMILIES):
        raise UsageError(f"--family {name!r} is unknown: use one of {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name] if name else family_of(source)
    quality = reparse(source, target, family)
    failed = quality.summary()["parse_stages"].get("failed", 0)
    console.show(f"{quality.answers} answers parsed as {family.name}, {failed} without an annotation: {target}")
    return 1 if failed else 0


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "nothing was written"
