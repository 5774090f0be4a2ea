"""A row of the input and its caption."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One image to annotate: its path, its caption and the text of its input row."""

    image_path: str
    caption: str
    text: str  # a JSON object
    dropped: tuple[str, ...] = ()  # columns of the text that do not go into its answer
    has_caption: bool = True  # False without a caption column; a column named caption then passes through


def caption_text(caption: Any, written: str) -> str:
    """Returns the text of a caption that is not a string: a list as lines, other values as their JSON, `written`.

    None and NaN, the null of many tables, give an empty caption.
    """
    if caption is None or (isinstance(caption, float) and math.isnan(caption)):
        return ""
    if isinstance(caption, list) and all(isinstance(line, str) for line in caption):
        return "\n".join(caption)
    return written
