"""A row of the input, and the caption in it."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One image to annotate: its path, its caption and the text of the input row they came from."""

    image_path: str
    caption: str
    text: str  # a JSON object
    has_caption: bool = True  # False where no column is one; a column of that name is then as any other


def caption_text(caption: Any, written: str) -> str:
    """A caption that is no text, as it is asked: several are lines of one, others are their JSON as it is `written`.

    None and NaN, which is how tables write that there is none, are no caption.
    """
    if caption is None or (isinstance(caption, float) and math.isnan(caption)):
        return ""
    if isinstance(caption, list) and all(isinstance(line, str) for line in caption):
        return "\n".join(caption)
    return written
