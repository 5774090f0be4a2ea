"""`vllm-annotate evaluate`: scores an output against a truth.

Exit codes: 0 scored, whatever the scores are; 2 refused, nothing written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.options import Option, command, flag_of, option
from vllm_annotate.errors import UsageError
from vllm_annotate.storage.locations import local_path


def app() -> App:
    """The command's options."""
    return command(
        "evaluate",
        "Score the boxes of an output against a truth. --output and --truth are required.",
        [
            option("output", "An output of annotate, at a path or a URL."),
            option("truth", "Rows with image_path and objects, as an output has them, or a COCO file."),
            *common_options(),
        ],
    )


def common_options() -> list[Option]:
    """The options that `compare` has too."""
    return [
        option("synonyms", "YAML or JSON file with groups of equal names, such as [[sofa, couch], [tv, television]]."),
        option("image_root", "Folder or URL of the images, for the page. (default: that of the output's run)"),
        option("json", "Print the figures as JSON.", bool),
    ]


def require(given: Mapping[str, Any], *required: str) -> None:
    """Raises UsageError if one of these options is missing."""
    if missing := [flag_of(name) for name in required if not given.get(name)]:
        raise UsageError(f"{' and '.join(missing)}: required")


def path_in(given: Mapping[str, Any], name: str) -> Path:
    """The path of an option. Raises UsageError if it is a URL."""
    return local_path(given[name], flag_of(name))


def run(given: Mapping[str, Any], console: Console, _interrupts: Interrupts) -> int:
    """Writes JSON and page beside the output; returns the exit code."""
    from vllm_annotate.evaluation.report import evaluate_to_files
    from vllm_annotate.evaluation.tables import evaluation_text
    from vllm_annotate.results.local_output import given_output

    require(given, "output", "truth")
    output, truth = given_output(given["output"], "--output"), path_in(given, "truth")
    synonyms = path_in(given, "synonyms") if given.get("synonyms") else None
    figures, files = evaluate_to_files(output, truth, synonyms, given.get("image_root"))
    if given.get("json"):
        console.show(json.dumps(figures, ensure_ascii=False, indent=2))
    else:
        console.show(evaluation_text(figures) + "\n\n" + "\n".join(map(str, files)))
    return 0


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "nothing was written"
