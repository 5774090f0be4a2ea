"""Makes values of any type from outside files displayable."""

import re
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def text_of(value: Any, longest: int = 2000) -> str:
    """The value as text without control characters, shortened to `longest`; "" for None."""
    try:
        text = value if isinstance(value, str) else "" if value is None else str(value)
    except (RecursionError, ValueError):  # deeply nested lists; numbers of 5,000 digits
        text = "(cannot be shown)"
    shown = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text[:longest])
    return shown if len(text) <= longest else f"{shown}… ({len(text) - longest} more characters)"
