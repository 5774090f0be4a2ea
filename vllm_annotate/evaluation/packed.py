"""Named boxes of many images in a few arrays: 45 bytes a box, where Python objects take 500."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vllm_annotate.evaluation.matching import Booleans, Floats, Integers, ranges

MOST_BOXES = 2000  # of an image: all its pairs of boxes are compared at once
SCALE = 1000.0  # of a box in the output's space, 0–1000


@dataclass(frozen=True)
class Boxes:
    """Boxes of some images, those of an image together, in order."""

    image: Integers  # from 0, in the order of the images
    name: Integers
    box: Floats  # x, y, width, height: as COCO has them, so that rounding makes and breaks the same ties
    crowd: Booleans


@dataclass
class Packer:
    """Collects the boxes of one image after the other."""

    names: "array[int]" = field(default_factory=lambda: array("i"))
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    starts: "array[int]" = field(default_factory=lambda: array("q", [0]))
    sizes: "array[float]" = field(
        default_factory=lambda: array("f")
    )  # what a box's units are in: 1000 and 1000, or pixels
    crowds: bytearray = field(default_factory=bytearray)

    def add(
        self, names: Sequence[int], boxes: Sequence[float], size: tuple[float, float], crowds: bytes | None = None
    ) -> None:
        """Adds an image: a name and four numbers a box."""
        self.names.extend(names)
        self.boxes.extend(boxes)
        self.crowds.extend(crowds or bytes(len(names)))
        self.starts.append(len(self.names))
        self.sizes.extend(size)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def packed(self) -> "Packed":
        """The arrays, without a copy: add nothing after it."""
        return Packed(
            np.frombuffer(self.names, np.int32),
            np.frombuffer(self.boxes, np.float64).reshape(-1, 4),
            np.frombuffer(self.crowds, np.bool_),
            np.frombuffer(self.starts, np.int64),
            np.frombuffer(self.sizes, np.float32).reshape(-1, 2),
        )


@dataclass(frozen=True)
class Packed:
    """The boxes of all images."""

    name: "np.ndarray[tuple[int], np.dtype[np.int32]]"
    box: "np.ndarray[tuple[int, int], np.dtype[np.float64]]"
    crowd: Booleans
    starts: Integers  # one more than there are images
    size: "np.ndarray[tuple[int, int], np.dtype[np.float32]]"  # width and height in the units of the boxes

    def of(self, images: Integers) -> Boxes:
        """The boxes of these images."""
        first = self.starts[images]
        count = self.starts[images + 1] - first
        rows = ranges(first, count)
        image = np.repeat(np.arange(len(images)), count)
        return Boxes(image, self.name[rows].astype(np.int64), self.box[rows], self.crowd[rows])
