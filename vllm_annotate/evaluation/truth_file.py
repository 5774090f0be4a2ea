"""Reads a truth of either form, recognised by its content."""

from pathlib import Path

from vllm_annotate.evaluation.coco import looks_like_coco, read_coco
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.texts import check_file
from vllm_annotate.evaluation.truth import Truth
from vllm_annotate.evaluation.truth_rows import read_rows


def read_truth(path: Path, names: Names, option: str = "--truth") -> Truth:
    """The truth in a file; `option` names it in messages. Raises UsageError."""
    check_file(path, option)
    named = f"{option} {str(path)!r}"
    return (read_coco if looks_like_coco(path, named) else read_rows)(path, names, named)
