"""The answer of one attempt: its text, its annotation, whether to re-ask, and its fields in a row."""

from dataclasses import dataclass
from typing import Any

from vllm_annotate.errors import UnparsableAnswer
from vllm_annotate.grounding.parse import Annotation, parse_answer
from vllm_annotate.recipe.families import Family


@dataclass(frozen=True)
class Answer:
    """A model's text and its annotation, if it contains one."""

    text: str
    annotation: Annotation | None
    whole: bool  # the model stopped by itself

    @property
    def is_loop(self) -> bool:
        """Whether its boxes progress in equal steps, as in a loop."""
        return self.annotation is not None and "progression" in self.annotation.flags

    @property
    def is_good(self) -> bool:
        """Whether there is no need to re-ask."""
        return self.annotation is not None and self.whole and not self.is_loop

    def rank(self) -> tuple[bool, bool, bool, int]:
        """Returns a key to compare attempts for one image: better is greater."""
        flags = len(self.annotation.flags) if self.annotation else 0
        return self.annotation is not None, self.whole, not self.is_loop, -flags


def read_answer(text: str, family: Family, sent_size: tuple[int, int], *, whole: bool) -> Answer:
    """Parses the text of a model of `family` that saw an image of `sent_size` (width, height) pixels."""
    try:
        return Answer(text, parse_answer(text, family, *sent_size, truncated=not whole), whole)
    except UnparsableAnswer:
        return Answer(text, None, whole)


def answer_fields(answer: Answer, attempts: int = 1) -> dict[str, Any]:
    """Returns the fields that an answer adds to its row, without those that have their default."""
    annotation = answer.annotation
    if annotation is None:
        fields: dict[str, Any] = {"annotations": None, "objects": [], "annotations_error": True}
    else:
        fields = {
            "annotations": {"rationale": annotation.rationale, "objects": annotation.objects},
            "objects": annotation.objects,
        }
        if annotation.flags:
            fields["flags"] = annotation.flags
        if annotation.stage != "json":
            fields["parse_stage"] = annotation.stage
    if attempts > 1:
        fields["attempts"] = attempts
    return fields
