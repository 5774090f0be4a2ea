"""`vllm-annotate compare`: where two outputs of one input differ and, with a truth, which one is better.

Exit codes: 0 compared, however much they differ; 2 refused, nothing written.
"""

import json
from collections.abc import Mapping
from typing import Any

from cyclopts import App

from vllm_annotate.cli.console import Console
from vllm_annotate.cli.evaluate import common_options, path_in, require
from vllm_annotate.cli.interrupts import Interrupts
from vllm_annotate.cli.options import command, option


def app() -> App:
    """The command's options."""
    return command(
        "compare",
        "Compare two outputs of one input. --output and --with are required.",
        [
            option("output", "An output of annotate, at a path or a URL: A."),
            option("with_", "Another output of the same images: B."),
            option("truth", "Rows or a COCO file, as for evaluate, to find out which one is better."),
            *common_options(),
        ],
    )


def run(given: Mapping[str, Any], console: Console, _interrupts: Interrupts) -> int:
    """Writes JSON and page beside the first output; returns the exit code."""
    from vllm_annotate.evaluation.comparison_tables import comparison_text
    from vllm_annotate.evaluation.report import compare_to_files
    from vllm_annotate.results.local_output import given_output

    require(given, "output", "with_")
    one, other = given_output(given["output"], "--output"), given_output(given["with_"], "--with")
    truth, synonyms = (path_in(given, name) if given.get(name) else None for name in ("truth", "synonyms"))
    figures, files = compare_to_files(one, other, truth, synonyms, given.get("image_root"))
    if given.get("json"):
        console.show(json.dumps(figures, ensure_ascii=False, indent=2))
    else:
        console.show(comparison_text(figures) + "\n\n" + "\n".join(map(str, files)))
    return 0


def interrupted(_: Mapping[str, Any]) -> str:
    """The state after an interrupt."""
    return "nothing was written"
