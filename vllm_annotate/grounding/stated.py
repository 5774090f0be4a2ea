"""A relation that a text states."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Boxes = Mapping[str, Sequence[Sequence[int]]]  # by name, in lower case


class Stated(NamedTuple):
    """One of `subjects` has the `relations` to one of `objects`, or lies on that side of the image if they are None.

    Several names can be meant: "the cup" may be the "red cup". A relation is left, right, above, below, inside or
    on top of; "upper left" is two.
    """

    subjects: Sequence[str]
    relations: Sequence[str]
    objects: Sequence[str] | None
    is_ambiguous: Callable[[], bool]  # whether the text speaks of several things by one of the names
