"""What a merge moved, counted."""

from collections import Counter
from dataclasses import dataclass, field

from vllm_annotate.grounding.quality import Quality
from vllm_annotate.storage.json_text import json_object


@dataclass
class Merged:
    """What a merge moved: rows into the output, and rows without an answer by failure kind."""

    answered: int = 0
    annotations_error: int = 0
    left_alone: int = 0  # failures that were not asked again
    failures: Counter[str] = field(default_factory=Counter)
    quality: Quality = field(default_factory=Quality)

    def add_all(self, other: "Merged") -> None:
        """Counts what another merge moved."""
        self.answered += other.answered
        self.annotations_error += other.annotations_error
        self.left_alone += other.left_alone
        self.failures.update(other.failures)
        self.quality.add_all(other.quality)

    def add(self, line: bytes, *, is_answer: bool) -> None:
        """Counts a row that moved."""
        if is_answer:
            self.add_answer(line)
        else:
            self.add_failure(line)

    def add_answer(self, line: bytes) -> None:
        """Counts a row that moved into the output."""
        self.answered += 1
        if not self.quality.is_full:
            self.quality.add(json_object(line) or {})
        # Check the bytes first: parsing every line would take most of a merge.
        if b'"annotations_error":true' in line and (json_object(line) or {}).get("annotations_error") is True:
            self.annotations_error += 1

    def add_failure(self, line: bytes) -> None:
        """Counts a row that moved into the failures file."""
        failure = (json_object(line) or {}).get("failure")
        self.failures[str(failure.get("kind")) if isinstance(failure, dict) else "unknown"] += 1
