"""Images of a gallery as the template's data: a picture with both sides' boxes, and a list of the objects."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import escape

from vllm_annotate.errors import ImageFailure
from vllm_annotate.evaluation.shown import Corners, Item, Shown
from vllm_annotate.images.prepare import thumbnail
from vllm_annotate.report.text import text_of
from vllm_annotate.storage.image_roots import ImageRoot

MOST_BYTES, BYTES_AN_ITEM = 9_000_000, 800  # of all cards; of an object, beside its name
THUMBNAIL_SIDE = 360
NO_ROOT = "set --image-root to the folder with the images"
COLOURS = {
    "missed": "#e5534b", "extra": "#d4741c", "found": "#2da44e", "ignored": "#8b949e",
    "lost": "#e5534b", "gained": "#a371f7", "moved": "#2f81f7", "kept": "#2da44e",
    "doubtful": "#e5534b", "not in the output": "#a371f7", "confirmed": "#2da44e",
}  # fmt: skip


def cards_of(
    images: Sequence[Shown], image_root: ImageRoot | None, score: str = "F1"
) -> tuple[list[dict[str, Any]], int]:
    """The cards that fit into MOST_BYTES, and the number of those that do not. Decodes images: run it in a thread.

    `score` is what an image's F1 is called.
    """
    cards: list[dict[str, Any]] = []
    used = 0
    for image in images:
        card = _card(image, image_root, score)
        size = len(card["jpeg"]) + BYTES_AN_ITEM * (2 + len(card["boxes"]))
        size += sum(
            len(escape(text).encode()) for text in (card["path"] * 2, *(item["name"] for item in card["boxes"]))
        )
        if used + size > MOST_BYTES:
            break
        cards.append(card)
        used += size
    return cards, len(images) - len(cards)


def filters_of(cards: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """The kinds to filter by, with the number of cards that have one; sets each card's `filters`."""
    counts = Counter(kind for card in cards for kind in card["kinds"])
    filters = [("all", len(cards)), *((kind, counts[kind]) for kind in COLOURS if counts[kind])]
    numbers = {kind: number for number, (kind, _) in enumerate(filters)}
    for card in cards:
        card["filters"] = [numbers[kind] for kind in card["kinds"]]
    return filters


def _card(image: Shown, image_root: ImageRoot | None, score: str) -> dict[str, Any]:
    jpeg, size, why_not = _picture(image.image_path, image_root)
    counts = Counter(item.kind for item in image.items)
    return {
        "path": text_of(image.image_path),
        "jpeg": jpeg,
        "size": size,
        "why_not": text_of(why_not),
        "kinds": list(counts),
        "marks": [f"{score} {image.f1:.2f}", *(f"{count} {kind}" for kind, count in counts.items())],
        "boxes": [_item(item) for item in image.items],
        "left_out": image.left_out,
    }


def _picture(path: str, image_root: ImageRoot | None) -> tuple[str, tuple[int, int], str]:
    if image_root is None:
        return "", (1, 1), NO_ROOT
    try:
        jpeg, size = thumbnail(image_root, path, THUMBNAIL_SIDE)
    except (ImageFailure, OSError) as error:
        return "", (1, 1), str(error)
    return base64.b64encode(jpeg).decode(), size, ""


def _item(item: Item) -> Mapping[str, Any]:
    sides = [_box(box, dashed=dashed) for box, dashed in ((item.answer, False), (item.truth, True)) if box is not None]
    return {
        "name": text_of(item.name, 120) or "(no name)",
        "note": item.note or (f"{item.kind}, IoU {item.iou:.2f}" if item.iou else item.kind),
        "colour": COLOURS[item.kind],
        **sides[0],
        "other": sides[1] if len(sides) > 1 else None,
    }


def _box(box: Corners, *, dashed: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {
        "x": round(x1, 1), "y": round(y1, 1), "width": round(x2 - x1, 1), "height": round(y2 - y1, 1), "dashed": dashed,
    }  # fmt: skip
