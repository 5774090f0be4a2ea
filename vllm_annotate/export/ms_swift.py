"""ms-swift's grounding form: a conversation per image, with placeholders for names and boxes.

ms-swift itself turns boxes in pixels of the image into the space of the model that it trains.
"""

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_annotate.export.about import About
from vllm_annotate.export.json_lines import write_lines
from vllm_annotate.export.rows import Labeled

QUESTION = "Say where things are in this image, then name each and give its box."
PLACEHOLDER = re.compile(r"<(?=(?:image|video|audio|bbox|ref-object|cot-process|start-image)>)")


def conversation_of(row: Labeled, image_root: str) -> dict[str, Any]:
    """Returns the conversation about a row that has a size."""
    caption = f"\nCaption: {_text(row.caption)}" if row.caption.strip() else ""
    lines = ["<ref-object><bbox>"] * len(row.objects)
    answer = "\n".join([_text(row.rationale), *lines] if row.rationale.strip() else lines)
    return {
        "messages": [
            {"role": "user", "content": f"<image>{QUESTION}{caption}"},
            {"role": "assistant", "content": answer},
        ],
        "images": [posixpath.join(image_root, row.path)],
        "objects": {
            "ref": [_text(item.name) for item in row.objects],
            "bbox": [row.pixels(item) for item in row.objects],
            "bbox_type": "real",
        },
    }


def _text(text: str) -> str:
    """Returns a text that contains no placeholder: each would take an image, a name or a box."""
    return PLACEHOLDER.sub("< ", text)


def write(path: Path, rows: Iterable[Labeled], about: About) -> None:
    """Writes a line for each image."""
    write_lines(path, (conversation_of(row, about.image_root) for row in rows))
