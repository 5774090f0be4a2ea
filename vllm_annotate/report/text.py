"""Makes values of any type from outside files displayable."""

from typing import Any

from vllm_annotate.printable import printable


def text_of(value: Any, longest: int = 2000) -> str:
    """The value as text without control characters, shortened to `longest`; "" for None."""
    try:
        text = value if isinstance(value, str) else "" if value is None else str(value)
    except (RecursionError, ValueError):  # deeply nested lists; numbers of 5,000 digits
        text = "(cannot be shown)"
    shown = printable(text[:longest])
    return shown if len(text) <= longest else f"{shown}… ({len(text) - longest} more characters)"
