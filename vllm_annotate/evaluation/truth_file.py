"""Reads a truth of either form, recognised by its content."""

from pathlib import Path

from vllm_annotate.evaluation.coco import looks_like_coco, read_coco
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.texts import check_file
from vllm_annotate.evaluation.truth import Truth
from vllm_annotate.evaluation.truth_rows import read_rows
from vllm_annotate.storage.workspace import Workspace


def known_truth(output: Path, given: Path | None, names: Names) -> tuple[Truth | None, Path | None]:
    """The truth that is given or else the rows that people reviewed, and its file; None if there is neither."""
    if given is not None:
        return read_truth(given, names), given
    reviewed = Workspace.of_file(output).reviewed
    if not (reviewed.is_file() and reviewed.stat().st_size):
        return None, None
    return read_truth(reviewed, names, "the reviewed rows"), reviewed


def read_truth(path: Path, names: Names, option: str = "--truth") -> Truth:
    """The truth in a file; `option` names it in messages. Raises UsageError."""
    check_file(path, option)
    named = f"{option} {str(path)!r}"
    return (read_coco if looks_like_coco(path, named) else read_rows)(path, names, named)
