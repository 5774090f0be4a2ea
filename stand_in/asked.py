"""What the stand-in was asked."""

import time
from collections import Counter, defaultdict
from typing import Any

from stand_in.prompts import Prompt


class Asked:
    """Counts of requests since the start or since they were forgotten. Those of a proof are only counted as such."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Resets the counts."""
        self.proof = 0
        self.first_at: float | None = None  # Unix time
        self.texts: Counter[str] = Counter()
        self.images: Counter[str] = Counter()  # by their SHA-1
        self.schemes: Counter[str] = Counter()  # of the images' URLs
        self.temperatures: defaultdict[str, list[float]] = defaultdict(list)

    def count(self, prompt: Prompt) -> None:
        """Counts a request."""
        if prompt.is_proof:
            self.proof += 1
            return
        self.texts[prompt.text] += 1
        if prompt.url:
            self.schemes[prompt.url.partition(":")[0]] += 1
        self.temperatures[prompt.text].append(prompt.temperature)
        self.first_at = self.first_at or time.time()

    def counts(self) -> dict[str, Any]:
        """The body of /stand_in/asked."""
        return vars(self)
