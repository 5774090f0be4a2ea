"""ODVG's grounding form, as Open-GroundingDino and MMDetection (MM-Grounding-DINO) read it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_annotate.export.about import About
from vllm_annotate.export.json_lines import write_lines
from vllm_annotate.export.rows import Labeled

ENDS = (".", "!", "?", "。", "！", "？")


def grounding_of(row: Labeled) -> dict[str, Any]:
    """Returns the record of a row that has a size. Boxes are left, top, right and bottom in pixels.

    The caption is the row's, and then the names that do not occur in it. MMDetection trains on `tokens_positive`, the
    place of the phrase in the caption, which it trims and lowers first; Open-GroundingDino on the phrases alone.
    """
    caption, places = _with_names(row.caption, [item.name for item in row.objects])
    width, height = row.size or (0, 0)
    regions = [
        {"bbox": row.pixels(item), "phrase": item.name, "tokens_positive": [places[item.name]]} for item in row.objects
    ]
    return {
        "filename": row.path,
        "height": height,
        "width": width,
        "grounding": {"caption": caption, "regions": regions},
    }


def _with_names(caption: str, names: list[str]) -> tuple[str, dict[str, list[int]]]:
    """Returns the caption with all names in it, and the start and end of each in the lowered caption."""
    caption = " ".join(caption.split())
    for name in dict.fromkeys(names):
        if _word_at(caption.lower(), name.lower()) < 0:
            stop = "" if not caption or caption.endswith(ENDS) else "."
            caption = f"{caption}{stop} {name}.".strip()
    lowered = caption.lower()
    starts = {name: _word_at(lowered, name.lower()) for name in names}
    return caption, {name: [start, start + len(name.lower())] for name, start in starts.items()}


def _word_at(text: str, word: str) -> int:
    """Returns where `word` first stands on its own, as "cat" does not in "catalogue"; -1 if nowhere."""
    at = text.find(word)
    while at >= 0:
        around = text[max(0, at - 1) : at] + text[at + len(word) : at + len(word) + 1]
        if not any(character.isascii() and character.isalnum() for character in around):
            break
        at = text.find(word, at + 1)
    return at


def write(path: Path, rows: Iterable[Labeled], _: About) -> None:
    """Writes a line for each image."""
    write_lines(path, map(grounding_of, rows))
