"""Writes the files of an evaluation or a comparison beside the output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_annotate.evaluation.compare import compare
from vllm_annotate.evaluation.comparison_page import comparison_page
from vllm_annotate.evaluation.evaluate import evaluate
from vllm_annotate.evaluation.files import image_root_of
from vllm_annotate.evaluation.page import evaluation_page
from vllm_annotate.storage.atomic import replacing, write_json
from vllm_annotate.storage.workspace import Workspace


def evaluate_to_files(
    output: Path, truth: Path, synonyms: Path | None = None, image_root: Path | str | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """Returns the figures, and the files that have them. Raises UsageError."""
    root = image_root_of(output, image_root)
    found = evaluate(output, truth, synonyms)
    page = evaluation_page(found.figures, found.worst, root)
    return found.figures, write_files(output, "evaluation", found.figures, page)


def compare_to_files(
    output: Path,
    other: Path,
    truth: Path | None = None,
    synonyms: Path | None = None,
    image_root: Path | str | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Returns the figures, and the files beside the first output that have them. Raises UsageError."""
    root = image_root_of(output, image_root)
    found = compare(output, other, truth, synonyms)
    page = comparison_page(found.figures, found.most_different, root)
    return found.figures, write_files(output, "comparison", found.figures, page)


def write_files(output: Path, kind: str, figures: Mapping[str, Any], page: bytes) -> list[Path]:
    """Replaces the JSON and the page of this kind; returns their paths."""
    as_json, as_page = Workspace.of_file(output).figures(kind)
    write_json(as_json, dict(figures))
    with replacing(as_page) as file:
        file.write(page)
    return [as_json, as_page]
