"""Stops a chunk when too many of the last images failed: something is wrong that a person has to look at."""

from collections import Counter, deque

from vllm_annotate.errors import ErrorBudgetExceeded, ImageFailure

LAST_IMAGES = 500
FREE_FAILURES = 10  # three corrupt files in a chunk of five images do not mean that the server is broken


class ErrorBudget:
    """Counts the failures among the last images of a run, whichever chunk they are of."""

    def __init__(self, share: float) -> None:
        """A budget of this share of the last images; with 0 the first failure exceeds it."""
        self._share = share
        self._last: deque[str] = deque(maxlen=LAST_IMAGES)  # kinds of failure; "" of an answer

    def answered(self) -> None:
        """Takes note of an answer."""
        self._last.append("")

    def failed(self, failure: ImageFailure, images: int) -> None:
        """Takes note of a failure in a chunk with so many images, if fewer than LAST_IMAGES the number that is judged.

        Raises ErrorBudgetExceeded, and forgets what it counted: the next chunk starts from zero.
        """
        self._last.append(failure.kind)
        judged = min(images, LAST_IMAGES)
        kinds = Counter(list(self._last)[-judged:])
        del kinds[""]
        if kinds.total() <= (self._share and max(FREE_FAILURES, self._share * judged)):
            return
        among = min(judged, len(self._last))
        self._last.clear()
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise ErrorBudgetExceeded(
            f"{kinds.total()} of the last {among} images failed ({listed}), more than the error budget of "
            f"{self._share:g} allows; last failure: {failure.message}"
        )
