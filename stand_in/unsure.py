"""Answers of a model that is unsure: seeded errors, more of them in some objects than in others."""

import random
from collections.abc import Sequence
from dataclasses import replace

from vllm_annotate.proof.drawings import COLOURS, Shape

HARDEST = 0.9  # the probability of an error about the hardest objects; the easiest have none


def unsure(shapes: Sequence[Shape], image: bytes, size: tuple[int, int], seed: int, asked: int | None) -> list[Shape]:
    """The shapes, some moved, renamed or dropped: the same for the same image, `seed`, and `asked`, the request's seed.

    How hard an object is does not depend on the request.
    """
    found = []
    for number, shape in enumerate(shapes):
        place = f"{seed} {image[-32:].hex()} {len(image)} {number}"
        hardness = HARDEST * random.Random(place).random() ** 2
        rng = random.Random(f"{place} {asked}")
        if rng.random() >= hardness:
            found.append(shape)
            continue
        kind = rng.choice(("moved", "renamed", "dropped"))
        if kind == "moved":
            found.append(replace(shape, box=_moved(shape, size, rng)))
        elif kind == "renamed":
            found.append(replace(shape, colour=rng.choice([each for each in COLOURS if each != shape.colour])))
    return found


def _moved(shape: Shape, size: tuple[int, int], rng: random.Random) -> tuple[int, int, int, int]:
    """A box of the same size elsewhere."""
    x1, y1, x2, y2 = shape.box
    left, top = (rng.randrange(of - side + 1) for of, side in zip(size, (x2 - x1, y2 - y1), strict=True))
    return left, top, left + x2 - x1, top + y2 - y1
