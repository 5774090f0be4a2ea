"""How doubtful an answer is: the order in which people should look."""

from typing import Any

FLAGGED, PER_FLAG, MOST_FLAGS = 0.6, 0.05, 5
UNPARSED, TINY = 0.5, 0.4
TINY_SHARE = 0.001  # of the image: 32 × 32 pixels of a megapixel
# Flags about the text, not about a box that is still there.
MILD = {"repeated_key", "several_answers", "thinking_only", "ignored_text", "duplicate"}


def doubt(row: dict[str, Any]) -> float:
    """Returns 0 (no sign of a fault) to 1 for a row of an output. Tolerates any content.

    What an audit measured comes first: 1 minus the agreement. Else the strongest of three signs: flags (0.6 and more,
    by their number), no annotation (0.5), tiny boxes (up to 0.4, by their share of all boxes).
    """
    agreement = row.get("agreement")
    if isinstance(agreement, int | float) and not isinstance(agreement, bool) and 0 <= agreement <= 1:
        return 1 - float(agreement)
    flags = row.get("flags")
    marks = {flag for flag in flags if isinstance(flag, str)} - MILD if isinstance(flags, list) else set()
    if marks:
        return FLAGGED + PER_FLAG * (min(len(marks), MOST_FLAGS) - 1)
    objects = row.get("objects")
    if row.get("annotations_error") is True or not isinstance(objects, list) or not objects:
        return UNPARSED
    return TINY * sum(map(_is_tiny, objects)) / len(objects)


def _is_tiny(item: Any) -> bool:
    try:
        left, top, right, bottom = item["bbox"]
        return bool((right - left) * (bottom - top) < TINY_SHARE * 1_000_000)
    except (TypeError, KeyError, ValueError):
        return True
