"""How far other answers agree with the first one, image by image and box by box."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vllm_annotate.evaluation.answers import Answers, read_as_truth
from vllm_annotate.evaluation.joining import Batch, Join
from vllm_annotate.evaluation.matching import Booleans, Floats, Integers, Matches, matched, overlapping, ranges
from vllm_annotate.evaluation.names import Names
from vllm_annotate.evaluation.packed import Packed
from vllm_annotate.evaluation.scores import Tally, f1_of_images
from vllm_annotate.evaluation.truth import Truth

IOU = 0.5
MOST_EXTRAS = 20  # boxes of another answer that the first lacks, of an image


@dataclass
class Agreement:
    """The first answers, and what the others say about them."""

    first: Truth
    names: Names
    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        boxes = self.boxes
        self.answers = np.zeros(len(boxes.starts) - 1)  # how many others there are, of each image
        self.sums = np.zeros(len(boxes.starts) - 1)  # of F1
        self.found = np.zeros(len(boxes.name))  # how many others have the box
        self.unit = np.full(len(boxes.starts) - 1, np.nan)  # area in pixels of a unit of the boxes, of each image

    @property
    def boxes(self) -> Packed:
        """The boxes of the first answers."""
        return self.first.boxes

    @property
    def image(self) -> Integers:
        """The image of each box."""
        return np.repeat(np.arange(len(self.answers)), np.diff(self.boxes.starts))

    @property
    def is_asked(self) -> Booleans:
        """Whether there is another answer to the image of each box."""
        return np.asarray(self.answers[self.image] > 0)

    @property
    def of_images(self) -> Floats:
        """The mean F1 of each image; NaN without another answer."""
        return _ratio(self.sums, self.answers)

    @property
    def of_boxes(self) -> Floats:
        """The share of the other answers that have each box; NaN without another answer."""
        return _ratio(self.found, self.answers[self.image])

    def add(self, other: Path) -> None:
        """Adds the answers of another output; a note says so if it has no image of the first. Raises UsageError."""
        join = Join(Answers(other, self.names), self.first, "the sample")
        for batch in join.batches():
            by_image, matches = self.tally.add(batch, len(self.names.texts))
            self.answers[batch.images] += 1
            self.unit[batch.images] = batch.unit
            self.sums[batch.images] += f1_of_images(by_image)
            rows = rows_of(self.boxes, batch.images)
            self.found[rows[matches[0].truth[matches[0].truth >= 0]]] += 1
        self.others.append(other)
        empty = ["it has no image of the sample"] if join.is_empty else []
        self.notes += [f"{other.name}: {note}" for note in [*empty, *join.answers.notes()]]

    def extras(self, images: Iterable[int]) -> dict[int, list[tuple[int, Floats]]]:
        """Name and box of what other answers have and the first lacks, of these images; MOST_EXTRAS of each at most.

        Reads the answers again: images to show are few, and which they are is known only after the last answer.
        """
        paths = list(self.first.index)
        found: dict[int, list[tuple[int, Floats]]] = {image: [] for image in images}
        some = Truth(self.boxes, {paths[image]: image for image in found}, self.first.kind)
        for other in self.others:
            for batch in Join(Answers(other, self.names), some).batches():
                for row in np.flatnonzero(_matches(batch, len(self.names.texts)).truth < 0):
                    kept = found[int(batch.images[batch.answer.image[row]])]
                    if len(kept) < MOST_EXTRAS:
                        kept.append((int(batch.answer.name[row]), batch.answer.box[row]))
        return found


def agreement_of(first: Path, others: Sequence[Path], names: Names) -> Agreement:
    """Reads the sampled rows and the other answers to them; a file that does not exist has none. Raises UsageError."""
    found = Agreement(read_as_truth(Answers(first, names)), names)
    for other in others:
        if other.is_file() and other.stat().st_size:
            found.add(other)
    return found


def rows_of(boxes: Packed, images: Integers) -> Integers:
    """The rows of all boxes of these images, in that order."""
    return ranges(boxes.starts[images], boxes.starts[images + 1] - boxes.starts[images])


def right_boxes(first: Path, found: Agreement, truth: Truth) -> tuple[Booleans, Booleans, list[str]]:
    """Which boxes of the first answers are right, for which of them the truth is known, and notes. Raises UsageError.

    A box over a crowd is neither right nor wrong.
    """
    known, right = (np.zeros(len(found.boxes.name), np.bool_) for _ in range(2))
    join = Join(Answers(first, found.names), truth)
    for batch in join.batches():
        matches = _matches(batch, len(found.names.texts))
        rows = rows_of(found.boxes, np.array([found.first.index[path] for path in batch.paths], np.int64))
        taken = matches.truth >= 0
        right[rows] = taken
        known[rows] = True
        known[rows[taken]] = ~batch.truth.crowd[matches.truth[taken]]
    if join.is_empty:
        return right, known, ["the truth has no image of the sample, so nothing is calibrated"]
    return right, known, join.truth.notes


def _matches(batch: Batch, names: int) -> Matches:
    truth, answer = batch.truth, batch.answer
    pairs = overlapping(
        truth.box, answer.box, truth.image * names + truth.name, answer.image * names + answer.name, truth.crowd
    )
    return matched(pairs, len(answer.box), truth.crowd, truth.crowd, IOU)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """NaN where the whole is 0."""
    found = np.full(len(part), np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found
