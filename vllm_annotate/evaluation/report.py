"""Writes the files of an evaluation or a comparison beside the output."""

from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

from vllm_annotate.evaluation.compare import compare
from vllm_annotate.evaluation.comparison_page import comparison_page
from vllm_annotate.evaluation.evaluate import evaluate
from vllm_annotate.evaluation.files import image_root_of
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.page import evaluation_page
from vllm_annotate.evaluation.texts import check_file
from vllm_annotate.results.local_output import local_output
from vllm_annotate.storage.atomic import replacing, write_json
from vllm_annotate.storage.workspace import Workspace


def evaluate_to_files(
    output: Path | str,
    truth: Path,
    synonyms: Path | None = None,
    image_root: Path | str | None = None,
    stopped: Event | None = None,
) -> tuple[dict[str, Any], list[Path | str]]:
    """Returns the figures, and the files beside the output that have them. Raises UsageError and OSError.

    Setting `stopped` ends the copying of an output at a URL.
    """
    _check(truth, synonyms)
    with local_output(output, stopped) as here:
        root = image_root_of(here.path, image_root)
        found = evaluate(here.path, truth, synonyms)
        figures = found.figures | {"output": str(output)}
        page = evaluation_page(figures, found.worst, root)
        return figures, here.publish(write_files(here.path, "evaluation", figures, page), instead=Path.cwd())


def compare_to_files(
    output: Path | str,
    other: Path | str,
    truth: Path | None = None,
    synonyms: Path | None = None,
    image_root: Path | str | None = None,
    stopped: Event | None = None,
) -> tuple[dict[str, Any], list[Path | str]]:
    """Returns the figures, and the files beside the first output that have them; as `evaluate_to_files`."""
    _check(truth, synonyms)
    with local_output(output, stopped) as one, local_output(other, stopped) as two:
        root = image_root_of(one.path, image_root)
        found = compare(one.path, two.path, truth, synonyms)
        figures = found.figures | {"output": str(output), "with": str(other)}
        page = comparison_page(figures, found.most_different, root)
        return figures, one.publish(write_files(one.path, "comparison", figures, page), instead=Path.cwd())


def _check(truth: Path | None, synonyms: Path | None) -> None:
    """Raises UsageError if either cannot be read: better before an output is copied than after."""
    if truth is not None:
        check_file(truth, "--truth")
    Names(synonyms)


def write_files(output: Path, kind: str, figures: Mapping[str, Any], page: bytes) -> list[Path]:
    """Replaces the JSON and the page of this kind; returns their paths."""
    as_json, as_page = Workspace.of_file(output).figures(kind)
    write_json(as_json, dict(figures))
    with replacing(as_page) as file:
        file.write(page)
    return [as_json, as_page]
