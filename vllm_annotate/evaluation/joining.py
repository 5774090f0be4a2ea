"""Joins an output with the truth by path, and yields the boxes of both in batches. Rows may be in any order."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.answers import Answer, Answers
from vllm_annotate.evaluation.matching import Floats, Integers
from vllm_annotate.evaluation.packed import SCALE, Boxes, Packer
from vllm_annotate.evaluation.truth import AMBIGUOUS, Truth
from vllm_annotate.storage.locations import name_of

BATCH_IMAGES, BATCH_PAIRS = 8192, 4_000_000
BY_PATH, BY_BASE_NAME = 1, 2
OTHER_SHAPE = 0.02  # how far two aspect ratios of one image may be apart, for rounded thumbnails


@dataclass(frozen=True)
class Batch:
    """Some images of both: their boxes in the units of the truth."""

    paths: list[str]
    images: Integers  # in the truth
    truth: Boxes
    answer: Boxes
    unit: Floats  # area in pixels of a unit of the boxes, for each image; NaN if the sizes are not known
    size: Floats  # width and height of each image in the units of the boxes


@dataclass
class Join:
    """An output and the truth; the counts are complete once `batches` is."""

    answers: Answers
    truth: Truth
    other: str = "the truth"  # what messages call it
    output_only: int = 0
    again: int = 0  # further rows of an image
    by_base_name: int = 0
    other_shape: int = 0
    seen: bytearray = field(init=False)  # how each image of the truth was found, or 0
    _example: str = ""  # an image of the output that the truth lacks

    def __post_init__(self) -> None:
        self.seen = bytearray(len(self.truth.boxes.starts) - 1)

    @property
    def truth_only(self) -> int:
        """Images of the truth that the output lacks."""
        return len(self.truth.index) - len(self.seen) + self.seen.count(0)

    @property
    def is_empty(self) -> bool:
        """Whether no image is in both."""
        return not any(self.seen)

    def check_common(self) -> None:
        """Raises UsageError if no image is in both: nothing can be compared."""
        if self.is_empty:
            raise UsageError(
                f"{self.answers.named} and {self.other} have no image in common: the former has {self._example!r:.200}"
                f", the latter {next(iter(self.truth.index), '')!r:.200}; write the same paths in both"
            )

    def notes(self) -> list[str]:
        """What the reader of the scores has to know about the two files."""
        counted = {
            "further rows of an image in the output, of which the first one counts": self.again,
            "images with another path in the truth, found by their base name": self.by_base_name,
            "images with another shape in the truth than in the output, so check that its boxes are of upright images":
                self.other_shape,
        }  # fmt: skip
        found = [f"{text}: {count:,}" for text, count in counted.items() if count]
        return [*self.answers.notes(), *self.truth.notes, *found]

    def batches(self) -> Iterator[Batch]:
        """Yields the images that are in both: none if there are none."""
        packer, images, pending, pairs = Packer(), [], [], 0
        for answer in self.answers.read():
            image = self._image(answer.image_path)
            if image is None:
                continue
            starts = self.truth.boxes.starts
            pairs += len(answer.names) * int(starts[image + 1] - starts[image])
            packer.add(answer.names, answer.boxes, answer.size)
            images.append(image)
            pending.append(answer)
            if len(images) == BATCH_IMAGES or pairs > BATCH_PAIRS:
                yield self._batch(packer, images, pending)
                packer, images, pending, pairs = Packer(), [], [], 0
        if images:
            yield self._batch(packer, images, pending)

    def _image(self, path: str) -> int | None:
        """The image in the truth, unless it is not there or was seen. Raises UsageError if two could be meant."""
        how, image = BY_PATH, self.truth.index.get(path)
        if image is None:
            how, image = BY_BASE_NAME, self.truth.by_base_name.get(name_of(path))
        if image is None:
            self.output_only += 1
            self._example = self._example or path
            return None
        if image == AMBIGUOUS or (self.seen[image] and BY_BASE_NAME in (how, self.seen[image])):
            where = "several images of the truth have" if image == AMBIGUOUS else "two images of the output have"
            raise UsageError(
                f"image {path!r:.200}: {where} the base name {name_of(path)!r:.200}: write file_name in the truth as "
                "image_path in the output"
            )
        if self.seen[image]:
            self.again += 1
            return None
        self.by_base_name += how == BY_BASE_NAME
        self.seen[image] = how
        return image

    def _batch(self, packer: Packer, images: list[int], answers: list[Answer]) -> Batch:
        packed, rows = packer.packed(), np.array(images, np.int64)
        pixels, size = packed.size.astype(np.float64), self.truth.boxes.size[rows].astype(np.float64)
        missing = size[:, 0] == 0
        if (missing & (pixels[:, 0] == 0)).any():
            path = answers[int(np.argmax(missing & (pixels[:, 0] == 0)))].image_path
            raise UsageError(
                f"image {path!r:.200} has no width and height, neither in the truth nor in {self.answers.named}: add "
                "them to the images of the COCO file"
            )
        size[missing] = pixels[missing]
        in_pixels = self.truth.kind == "coco"
        if in_pixels:
            self._check_shapes(size, pixels)
        with np.errstate(invalid="ignore"):
            known = np.where(pixels[:, 0] > 0, pixels.prod(axis=1), np.nan)
        answer = packed.of(np.arange(len(rows)))
        box = answer.box * np.tile(size[answer.image], 2) / SCALE
        scaled = Boxes(answer.image, answer.name, box, answer.crowd)
        unit = np.ones(len(rows)) if in_pixels else known / SCALE**2
        return Batch([each.image_path for each in answers], rows, self.truth.boxes.of(rows), scaled, unit, size)

    def _check_shapes(self, size: Floats, pixels: Floats) -> None:
        known = pixels[:, 0] > 0
        one, other = size[known, 0] / size[known, 1], pixels[known, 0] / pixels[known, 1]
        self.other_shape += int((np.abs(np.log(one / other)) > OTHER_SHAPE).sum())
