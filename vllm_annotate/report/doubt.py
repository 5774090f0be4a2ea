"""How doubtful a row is: the order in which people should look at rows."""

from typing import Any

from vllm_annotate.report.boxes import boxes_of

UNPARSED, WRONG, CORRECTED, FAILED, ODD = 1.0, 0.8, 0.6, 0.5, 0.3
# Flags of answers that are probably wrong; the others were put right, or are harmless.
WRONG_FLAGS = frozenset((
    "relation_contradicted", "rationale_repeats", "progression", "truncated", "unit_coordinates", "degenerate",
    "malformed_box", "malformed_object",
))  # fmt: skip
TINY = 10  # ‰ of the image's side
FEW_ATTEMPTS = 2


def doubt(row: dict[str, Any]) -> float:
    """From 0 (nothing speaks against it) to 1 (no annotation), for a row of the output or the failures file."""
    if "failure" in row:
        return FAILED
    if row.get("annotations_error") is True:
        return UNPARSED
    flags = row.get("flags")
    if isinstance(flags, list) and flags:
        return WRONG if any(flag in WRONG_FLAGS for flag in flags if isinstance(flag, str)) else CORRECTED
    return ODD if _is_odd(row) else 0.0


def _is_odd(row: dict[str, Any]) -> bool:
    """Whether it has no box, a tiny one, or took several attempts."""
    boxes, attempts = boxes_of(row), row.get("attempts", 1)
    tiny = any(min(box.x2 - box.x1, box.y2 - box.y1) < TINY for box in boxes)
    return not boxes or tiny or (isinstance(attempts, int) and attempts > FEW_ATTEMPTS)
