"""Rows with their images → the cards of a gallery, and its filters."""

import base64
from collections import Counter
from collections.abc import Iterable
from typing import Any

from markupsafe import escape

from vllm_annotate.report.boxes import boxes_of
from vllm_annotate.report.charts import COLOURS
from vllm_annotate.report.gallery import Example, failure_of, marks_of
from vllm_annotate.report.text import text_of

MOST_BYTES, BYTES_A_BOX, BYTES_A_CARD = 9_000_000, 400, 1500  # of all cards; per box; per card, beside its texts
MOST_FILTERS = 40
NOT_FLAGGED = "nothing flagged"
Card = dict[str, Any]


def cards_that_fit(examples: Iterable[Example]) -> tuple[list[Card], int]:
    """The cards that fit into MOST_BYTES, and the number of those that do not."""
    cards, left_out, used = [], 0, 0
    for example in examples:
        card = card_of(example)
        size = _size(card)
        if used + size <= MOST_BYTES:
            cards.append(card)
            used += size
        else:
            left_out += 1
    return cards, left_out


def card_of(example: Example) -> Card:
    """The template's data for one image."""
    row = example.row
    failed = failure_of(row) if "failure" in row else None
    marks = [f"failed: {failed['kind']}"] if failed else marks_of(row) or [NOT_FLAGGED]
    annotations = row.get("annotations")
    rationale = annotations.get("rationale") if isinstance(annotations, dict) else None
    return {
        "path": text_of(row.get("image_path")),
        "caption": text_of(row.get("caption")),
        "rationale": text_of(rationale),
        "raw": text_of(row.get("vlm_output")),
        "failure": failed["message"] if failed else "",
        "marks": list(dict.fromkeys(marks)),
        "jpeg": base64.b64encode(example.jpeg).decode() if example.jpeg else "",
        "size": example.size,
        "why_not": text_of(example.why_not),
        "boxes": [
            {
                "name": box.name,
                "x": round(box.x1, 1),
                "y": round(box.y1, 1),
                "width": round(box.x2 - box.x1, 1),
                "height": round(box.y2 - box.y1, 1),
                "colour": COLOURS[number % len(COLOURS)],
            }
            for number, box in enumerate(boxes_of(row))
        ],
    }


def filters_of(cards: list[Card]) -> list[tuple[str, int]]:
    """(name, count) of each filter, the first for all cards; adds the numbers of its filters to each card."""
    counts = Counter(mark for card in cards for mark in card["marks"]).most_common(MOST_FILTERS)
    filters = [("all", len(cards)), *sorted(counts, key=_filter_order)]
    numbers = {name: number for number, (name, _) in enumerate(filters)}
    for card in cards:
        card["filters"] = [numbers[mark] for mark in card["marks"] if mark in numbers]
    return filters


def _filter_order(filter_: tuple[str, int]) -> tuple[bool, bool, int, str]:
    """Flags by frequency, then failures, then what is not flagged."""
    name, count = filter_
    return name == NOT_FLAGGED, name.startswith("failed: "), -count, name


def _size(card: Card) -> int:
    """An upper bound for the bytes of a card in the page."""
    texts = [card[name] for name in ("path", "path", "caption", "rationale", "raw", "failure", "why_not")]
    texts += [*card["marks"], *(box["name"] for box in card["boxes"])]
    escaped = sum(len(escape(text).encode(errors="replace")) for text in texts)
    return escaped + len(card["jpeg"]) + BYTES_A_BOX * len(card["boxes"]) + BYTES_A_CARD
