"""A JSON value in any shape that models use → what it says: rationales and objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from vllm_annotate.grounding.boxes import BOX_KEYS, OTHER_BOX_KEYS, RawBox, four_numbers, raw_boxes
from vllm_annotate.grounding.tags import named_boxes

NAME_KEYS = (
    "label", "name", "object", "class", "category", "text_content", "名称", "标签", "物体", "类别", "labels", "names",
)  # fmt: skip
OBJECTS_KEYS = ("objects", "物体", "对象")
RATIONALE_KEYS = ("rationale", "reasoning", "reason", "explanation", "理由", "说明")
MAX_DEPTH = 6


class Repeated(list[Any]):
    """The values of a key that an object repeats."""


class Item(NamedTuple):
    """One object as written; without a box, `problem` is the flag that says why."""

    name: str
    box: RawBox | None
    problem: str = ""


@dataclass
class Part:
    """What one place in a text says of the image."""

    rationale: str = ""
    items: list[Item] | None = None  # None: nothing about objects
    is_answer: bool = False  # has a key for objects, as the answer that the prompt asks for
    after_prose: bool = False  # words stand between it and the part before it
    is_cut: bool = False  # it breaks off

    def without_last(self) -> None:
        """Removes the last object, whose numbers may be cut."""
        self.items, self.is_cut = (self.items or [])[:-1], True


def parts_of(value: Any, name: str = "", depth: int = 0) -> Iterator[Part]:
    """Yields what a JSON value says, place by place. `name` is the key that it stands under."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, dict) and "objects" in value:
        yield from _parts_of_answer(value, depth)
    elif isinstance(value, list) and any(map(_is_object, value)):
        yield from (part for inner in value if _is_about_image(inner) for part in parts_of(inner, "", depth + 1))
        yield Part(items=[item for inner in value if not _is_about_image(inner) for item in _items(inner, name)])
    elif _is_object(value) or (name and raw_boxes(value)):
        if isinstance(value, dict) and (rationale := _as_text(value.get("rationale"))):
            yield Part(rationale)
        yield Part(items=list(_items(value, name)))
    elif isinstance(value, list):
        for inner in value:
            yield from parts_of(inner, "", depth + 1)
    elif isinstance(value, dict):
        yield from _parts_of_answer(value, depth)
    elif isinstance(value, str) and (inside := _json_inside(value)) is not None:
        yield from parts_of(inside, name, depth + 1)


def part_as_asked(value: Any, quotes: int) -> Part | None:
    """Returns what `parts_of` would, three times as fast, for an answer in the very form that the prompt asks for.

    None for any other. `quotes`, the number of quotes in its text, shows that no key is repeated.
    """
    if not isinstance(value, dict) or len(value) != 2:
        return None
    rationale, objects = value.get("rationale"), value.get("objects")
    if (
        not objects
        or not isinstance(rationale, str)
        or not isinstance(objects, list)
        or quotes != 6 * (len(objects) + 1)
    ):
        return None
    items = []
    for inner in objects:
        if not isinstance(inner, dict) or len(inner) != 2:
            return None
        (box_key, box), (name_key, name) = inner.items()
        if name_key in BOX_KEYS:
            box_key, box, name_key, name = name_key, name, box_key, box
        if box_key not in BOX_KEYS or name_key not in NAME_KEYS[:2] or not isinstance(name, str):
            return None
        if not isinstance(box, list) or (numbers := four_numbers(box)) is None:
            return None
        items.append(Item(name, RawBox(numbers)))
    return Part(rationale, items, is_answer=True)


def _parts_of_answer(value: dict[str, Any], depth: int) -> Iterator[Part]:
    objects_key, rationale_key = _key(value, OBJECTS_KEYS), _key(value, RATIONALE_KEYS)
    objects = None if objects_key is None else value[objects_key]
    rationale = "" if rationale_key is None else _as_text(value[rationale_key])
    is_answer = isinstance(objects, list | dict | str)
    if is_answer:
        yield Part(rationale, list(_items(objects)), is_answer=True)
    elif rationale:
        yield Part(rationale)
    for key, inner in value.items():
        if key != rationale_key and not (is_answer and key == objects_key):
            # Beside a list of objects, a list of numbers is something else: the size of the image, say.
            yield from parts_of(inner, "" if is_answer else key, depth + 1)


def _items(value: Any, name: str = "", depth: int = 0) -> Iterator[Item]:
    """Yields the objects of a value that stands where objects belong."""
    if isinstance(value, dict):
        yield from _items_of_dict(value, name, depth)
    elif depth > MAX_DEPTH:
        yield Item(name, None, "malformed_object")
    elif isinstance(value, list):
        texts = [inner for inner in value if isinstance(inner, str)]
        if not any(isinstance(inner, dict) for inner in value) and (boxes := raw_boxes(value)):
            yield from _paired(name, boxes)
        elif len(texts) == 1 and (boxes := _boxes_beside(texts[0], value)):  # ["cat", [1, 2, 3, 4]]
            yield from _paired(texts[0], boxes)
        else:
            for inner in value:
                yield from _items(inner, name, depth + 1)
    elif isinstance(value, str):
        yield from _items_of_text(value, name, depth)
    else:
        yield Item(name, None, "malformed_object")


def _items_of_dict(value: dict[str, Any], name: str, depth: int) -> Iterator[Item]:
    box_key = _key(value, BOX_KEYS) or _key(value, OTHER_BOX_KEYS)
    names = [key for key in NAME_KEYS if isinstance(value.get(key), str | list)]
    name_key = names[0] if names else _key(value, NAME_KEYS)
    if name_key is not None and isinstance(value[name_key], dict):  # {"object": {…}}
        name_key = None
    boxes = raw_boxes(value if box_key is None else value[box_key])
    if not boxes and box_key is None and name_key is None and depth <= MAX_DEPTH:
        named = [item for key, inner in value.items() for item in _items(inner, key, depth + 1)]
        yield from named or [Item(name, None, "malformed_box")]
        return
    yield from _paired(name if name_key is None else _names(value[name_key]) or name, boxes or [None])
    if len(value) > 2:
        for key, inner in value.items():
            if key not in (box_key, name_key) and isinstance(inner, list | dict):
                yield from (item for part in parts_of(inner, "", depth + 1) for item in part.items or ())


def _items_of_text(text: str, name: str, depth: int) -> Iterator[Item]:
    if name and (boxes := raw_boxes(text)):
        yield from _paired(name, boxes)
    elif (inside := _json_inside(text)) is not None:
        yield from _items(inside, name, depth + 1)
    else:
        found = list(named_boxes(text))
        yield from (Item(own_name or name, box, "" if box else "malformed_box") for own_name, box in found)
        if not found:
            yield Item(name, None, "malformed_object")


def _paired(names: str | list[Any], boxes: list[RawBox | None]) -> Iterator[Item]:
    """Yields boxes with their names: one name for all, or one for each."""
    if isinstance(names, str):
        names = [names]
    if len(names) != len(boxes):
        names = (names if len(names) == 1 else [""]) * len(boxes)
    for name, box in zip(names, boxes, strict=True):
        yield Item(name if isinstance(name, str) else "", box, "" if box else "malformed_box")


def _names(value: Any) -> str | list[Any]:
    return value if isinstance(value, str | list) else ""


def _boxes_beside(name: str, value: list[Any]) -> list[RawBox | None]:
    others = [inner for inner in value if inner is not name]
    return raw_boxes(others[0] if len(others) == 1 else others)


def _is_object(value: Any) -> bool:
    """Whether a JSON value is an object of the image: it has a key for its box, or its corners."""
    if not isinstance(value, dict):
        return False
    if _key(value, BOX_KEYS) is not None:
        return True
    other = _key(value, OTHER_BOX_KEYS)
    if other is None:
        return bool(raw_boxes(value))
    inner = value[other]
    return bool(raw_boxes(inner)) and not (isinstance(inner, list) and any(isinstance(box, dict) for box in inner))


def _is_about_image(value: Any) -> bool:
    """Whether a JSON value beside objects is an answer, or the part of one, itself."""
    keys = (*OBJECTS_KEYS, *RATIONALE_KEYS)
    return isinstance(value, dict) and not _is_object(value) and _key(value, keys) is not None


def _key(value: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        if key in value:
            return key
    return next((key for key in value if key.strip().lower() in keys), None)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return ""
    return "\n".join(dict.fromkeys(text for text in value if isinstance(text, str)))


def _json_inside(text: str) -> Any:
    """Returns the JSON value in a string that contains nothing else; else None."""
    if text.lstrip()[:1] not in {"{", "[", '"'}:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
