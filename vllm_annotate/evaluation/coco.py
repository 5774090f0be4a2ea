"""Reads COCO's detection format piece by piece: a file of hundreds of megabytes is never held as objects."""

import codecs
import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.packed import MOST_BOXES, Packed
from vllm_annotate.evaluation.texts import lines_of, opened
from vllm_annotate.evaluation.truth import AMBIGUOUS, FORMS, Truth
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.locations import name_of

PIECE_BYTES = 1 << 20
NEEDED = {
    "images": ("id", "file_name"), "annotations": ("image_id", "bbox", "category_id"), "categories": ("id", "name"),
}  # fmt: skip
LISTS = tuple(NEEDED)


def looks_like_coco(path: Path, named: str) -> bool:
    """Whether the file is, or begins, one large JSON object, and its first line is not a row."""
    _, line = next(lines_of(path, named, PIECE_BYTES), (0, b""))
    row = json_object(line)
    if row is None:
        return line.lstrip().startswith(b"{") and b'"image_path"' not in line
    return "image_path" not in row and any(isinstance(row.get(name), list) for name in LISTS)


def read_coco(path: Path, names: Names, named: str) -> Truth:
    """Reads the boxes in pixels; those with `iscrowd` are ignored regions. Raises UsageError."""
    file = _File(named)
    for member, item in _items(path, named):
        file.add(member, item)
    return file.truth(names)


@dataclass
class _File:
    """What has been read of a COCO file. Annotations may come before their images."""

    named: str
    image: dict[Any, int] = field(default_factory=dict)  # id → number
    category: dict[Any, str] = field(default_factory=dict)
    file_names: dict[str, int] = field(default_factory=dict)
    size: dict[int, tuple[float, float]] = field(default_factory=dict)
    categories: dict[Any, int] = field(default_factory=dict)  # id → number, in the order of annotations
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    of: "array[int]" = field(default_factory=lambda: array("q"))
    name: "array[int]" = field(default_factory=lambda: array("i"))
    crowds: bytearray = field(default_factory=bytearray)
    flat: int = 0  # boxes without width or height: COCO's own files have a few

    def add(self, member: str, item: Any) -> None:
        """Adds one image, annotation or category. Raises UsageError if it is wrong."""
        try:
            if not isinstance(item, dict):
                raise ValueError(f"is not an object: {FORMS}")  # noqa: TRY004, TRY301
            if missing := [key for key in NEEDED[member] if key not in item]:
                raise ValueError(f"has no {' and no '.join(missing)}: add it, or remove the entry")  # noqa: TRY301
            getattr(self, f"_add_{member}")(item)
        except (ValueError, TypeError) as error:  # TypeError: a list as an id
            why = str(error) if isinstance(error, ValueError) else "has an id that is not a number: number all entries"
            shown = json.dumps(item, ensure_ascii=False)[:120]
            raise UsageError(f"{member} of {self.named}: {shown} {why}") from None

    def _add_images(self, item: dict[str, Any]) -> None:
        number, name = self.image.setdefault(item["id"], len(self.image)), item["file_name"]
        if not isinstance(name, str) or not name or name in self.file_names or number in self.size:
            raise ValueError("repeats an id or a file_name, or has no file_name: give each image its own")
        self.file_names[name] = number
        size: tuple[Any, Any] = item.get("width"), item.get("height")
        if size == (None, None):
            size = 0.0, 0.0  # the output's are taken
        elif not all(_is_number(side) and side > 0 for side in size):
            raise ValueError(f"has width {size[0]!r} and height {size[1]!r}: both must be numbers over 0")
        self.size[number] = size

    def _add_categories(self, item: dict[str, Any]) -> None:
        if not isinstance(item["name"], str) or item["id"] in self.category:
            raise ValueError("repeats an id or has no name: give each category its own")
        self.category[item["id"]] = item["name"]

    def _add_annotations(self, item: dict[str, Any]) -> None:
        box = item["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(number) for number in box):
            raise ValueError(f"has the bbox {box!r:.80}: write [x, y, width, height], four finite numbers")
        if min(box[2:]) < 0:
            raise ValueError(f"has the bbox {box!r:.80}: width and height must not be negative; correct or remove it")
        self.flat += min(box[2:]) == 0
        self.boxes.extend(box)
        self.of.append(self.image.setdefault(item["image_id"], len(self.image)))
        self.name.append(self.categories.setdefault(item["category_id"], len(self.categories)))
        self.crowds.append(item.get("iscrowd") in (1, True))

    def truth(self, names: Names) -> Truth:
        """The truth, once all is read."""
        if not self.file_names:
            raise UsageError(f"{self.named} has no images: {FORMS}")
        if unknown := next((one for one, number in self.image.items() if number not in self.size), None):
            raise UsageError(f"{self.named} has an annotation of image {unknown!r}, which is not in its images: add it")
        if lost := [one for one in self.categories if one not in self.category]:
            raise UsageError(f"{self.named} has an annotation of category {lost[0]!r}, which is not in its categories")
        numbers = np.array([names.number(self.category[one]) for one in self.categories], np.int32)
        of = np.frombuffer(self.of, np.int64)
        order = np.argsort(of, kind="stable")
        counts = np.bincount(of, minlength=len(self.image))
        if counts.max(initial=0) > MOST_BOXES:
            raise UsageError(
                f"{self.named} has an image with {counts.max():,} boxes: at most {MOST_BOXES:,} are compared"
            )
        packed = Packed(
            numbers[np.frombuffer(self.name, np.int32)[order]],
            np.frombuffer(self.boxes, np.float64).reshape(-1, 4)[order],
            np.frombuffer(self.crowds, np.bool_)[order],
            np.concatenate([[0], np.cumsum(counts)]),
            np.array([self.size[number] for number in range(len(self.image))], np.float32).reshape(-1, 2),
        )
        flat = f"boxes of the truth without width or height, which any answer misses: {self.flat:,}"
        return Truth(packed, self.file_names, "coco", _by_base_name(self.file_names), notes=[flat] if self.flat else [])


def _by_base_name(file_names: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in file_names.items():
        found[name_of(name)] = AMBIGUOUS if name_of(name) in found else number
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _items(path: Path, named: str) -> Iterator[tuple[str, Any]]:
    """Yields (name of the list, item) for the items of LISTS. Raises UsageError for other content."""
    text = _Text(path, named)
    text.skip("{")
    seen = set()
    while (mark := text.next()) != "}":
        if mark == ",":
            text.skip(",")
        key = text.value()
        text.skip(":")
        if key not in LISTS:
            text.value()
            continue
        if text.next() != "[":
            raise UsageError(f"{named} has {key} that are not a list: {FORMS}")
        seen.add(key)
        text.skip("[")
        while (mark := text.next()) != "]":
            if mark == ",":
                text.skip(",")
            yield key, text.value()
        text.skip("]")
    if missing := [name for name in LISTS if name not in seen]:
        raise UsageError(f"{named} has no {' and no '.join(missing)}: {FORMS}")


class _Text:
    """A JSON text that is read piece by piece."""

    def __init__(self, path: Path, named: str) -> None:
        self._named, self._buffer, self._at = named, "", 0
        self._pieces = self._read(path)
        self._decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """The next character that is not white space."""
        while True:
            while self._at < len(self._buffer):
                if not self._buffer[self._at].isspace():
                    return self._buffer[self._at]
                self._at += 1
            self._more()

    def skip(self, mark: str) -> None:
        """Passes this character. Raises UsageError if it is another."""
        if self.next() != mark:
            raise self._broken()
        self._at += 1

    def value(self) -> Any:
        """Reads one JSON value."""
        self.next()
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
                if end < len(self._buffer):  # else a number may go on
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._may_go_on():
                    raise self._broken() from None
            self._more()

    def _may_go_on(self) -> bool:
        return len(self._buffer) - self._at < 64 * PIECE_BYTES

    def _more(self) -> None:
        # As much again as is left, so that a large value is not parsed once for each piece of it.
        left = self._buffer[self._at :]
        more = "".join(islice(self._pieces, len(left) // PIECE_BYTES + 1))
        if not more:
            raise self._broken()
        self._buffer, self._at = left + more, 0

    def _broken(self) -> UsageError:
        shown = self._buffer[self._at : self._at + 40]
        place = f"at {shown!r}" if shown else "at its end"
        return UsageError(f"{self._named} is broken off or not valid JSON {place}: restore it; {FORMS}")

    def _read(self, path: Path) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        with opened(path, self._named) as file:
            try:
                while piece := file.read(PIECE_BYTES):
                    yield decoder.decode(piece)
            except UnicodeDecodeError:
                raise UsageError(f"{self._named} is not UTF-8: save it as UTF-8") from None
