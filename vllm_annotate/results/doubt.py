"""How doubtful a row is: the order in which people should look at rows."""

from typing import Any

UNPARSED, WRONG, CORRECTED, FAILED, ODD = 1.0, 0.8, 0.6, 0.5, 0.3
# Flags of answers that are probably wrong; the others were put right.
WRONG_FLAGS = frozenset((
    "relation_contradicted", "rationale_repeats", "progression", "truncated", "unit_coordinates", "degenerate",
    "malformed_box", "malformed_object",
))  # fmt: skip
# Flags about the text, not about a box that is still there.
MILD_FLAGS = frozenset(("repeated_key", "several_answers", "thinking_only", "ignored_text", "duplicate"))
TINY = 10  # ‰ of the image's side
FEW_ATTEMPTS = 2


def doubt(row: dict[str, Any], agreement: float | None) -> float:
    """From 0 (nothing speaks against it) to 1, for a row of the output or the failures file with any content.

    What an audit measured comes first: 1 minus the agreement. Else no annotation (1), flags of wrong answers, flags of
    corrected ones, a failure, and odd answers: with tiny boxes, or after several attempts.
    """
    if agreement is not None:
        return 1 - agreement
    if "failure" in row:
        return FAILED
    if row.get("annotations_error") is True:
        return UNPARSED
    flags = row.get("flags")
    marks = {flag for flag in flags if isinstance(flag, str)} if isinstance(flags, list) else set()
    if marks - MILD_FLAGS:
        return WRONG if marks & WRONG_FLAGS else CORRECTED
    return ODD if marks or _is_odd(row) else 0.0


def _is_odd(row: dict[str, Any]) -> bool:
    """Whether it has no box, a tiny one, or took several attempts."""
    objects, attempts = row.get("objects"), row.get("attempts", 1)
    return (
        not isinstance(objects, list)
        or not objects
        or any(map(_is_tiny, objects))
        or (isinstance(attempts, int) and attempts > FEW_ATTEMPTS)
    )


def _is_tiny(item: Any) -> bool:
    try:
        left, top, right, bottom = item["bbox"]
        return bool(min(right - left, bottom - top) < TINY)
    except (TypeError, KeyError, ValueError):
        return True
