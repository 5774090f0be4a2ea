"""Whether the boxes of an answer contradict what its rationale states: "the cup is left of the plate".

Flags only what is clear: a statement that is negated, hedged or ambiguous counts as none, and boxes that overlap the
stated side contradict nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

from vllm_annotate.grounding import stated_chinese, stated_english
from vllm_annotate.grounding.box_checks import Object
from vllm_annotate.grounding.stated import Boxes, Stated

CLEAR = 50  # ‰ between centres, or between boxes of which one should contain the other
ON_TOP = 100  # ‰ between boxes of which one should stand on the other
LAST_THIRD, FIRST_THIRD = 667, 333
AXES = {"left": (0, 1), "right": (0, -1), "above": (1, 1), "below": (1, -1)}  # of x or y; the subject has less or more
MOST_NAMES = 100  # an answer with more is a loop or a crowd
MOST_LETTERS = 4000


def contradicts_boxes(rationale: str, objects: Sequence[Object]) -> bool:
    """Whether a relation that the rationale states between two named objects is clearly not that of their boxes."""
    if not objects or len(objects) > MOST_NAMES:
        return False
    text = rationale[:MOST_LETTERS]
    boxes = _by_name(objects)
    return any(_is_contradicted(stated, boxes) and not stated.is_ambiguous() for stated in _stated(text, boxes))


def _stated(text: str, boxes: Boxes) -> Iterable[Stated]:
    if not text.isascii():
        yield from stated_chinese.statements(text, boxes)
    yield from stated_english.statements(text, boxes)


def _by_name(objects: Sequence[Object]) -> Boxes:
    boxes: dict[str, list[list[int]]] = {}
    for item in objects:
        boxes.setdefault(item["name"].lower(), []).append(item["bbox"])
    return boxes


def _is_contradicted(stated: Stated, boxes: Mapping[str, Sequence[Sequence[int]]]) -> bool:
    """Whether every pair of boxes that may be meant contradicts the statement."""
    subjects = [box for name in stated.subjects for box in boxes[name]]
    if stated.objects is None:
        return all(any(_is_across(relation, box) for relation in stated.relations) for box in subjects)
    others = [box for name in stated.objects for box in boxes[name]]
    return all(
        any(_is_not(relation, box, other) for relation in stated.relations)
        for box in subjects
        for other in others
        if box is not other
    )


def _is_not(relation: str, box: Sequence[int], other: Sequence[int]) -> bool:
    """Whether the box clearly does not have this relation to the other."""
    if relation == "inside":
        return max(_gap(0, box, other), _gap(1, box, other)) >= CLEAR
    if relation == "on top of":
        return _is_not("above", box, other) or max(_gap(0, box, other), _gap(1, box, other)) >= ON_TOP
    axis, sign = AXES[relation]
    first, second = (other, box) if sign > 0 else (box, other)  # as it would be if the statement were wrong
    centres = first[axis] + first[axis + 2], second[axis] + second[axis + 2]
    return centres[1] - centres[0] >= 2 * CLEAR and 2 * second[axis] >= centres[0] and 2 * first[axis + 2] <= centres[1]


def _gap(axis: int, box: Sequence[int], other: Sequence[int]) -> int:
    return max(box[axis] - other[axis + 2], other[axis] - box[axis + 2])


def _is_across(relation: str, box: Sequence[int]) -> bool:
    """Whether the box lies wholly in the third of the image opposite to the stated side."""
    axis, sign = AXES[relation]
    return box[axis] >= LAST_THIRD if sign > 0 else box[axis + 2] <= FIRST_THIRD
