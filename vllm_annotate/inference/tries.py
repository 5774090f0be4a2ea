"""The tries of one request: what counts as an attempt, and how long to wait before the next."""

import math
import random
import time
from dataclasses import dataclass, field

from vllm_annotate.inference.responses import Trouble

MAX_ATTEMPTS = 4  # on a healthy server
MAX_SERVER_LOSSES = 6  # if the server dies this often on an image, the image is at fault
SUSPECT_LOSSES = 2  # from here on, images are sent one at a time, so that one that kills servers takes no other along
BACKOFF_SECONDS = (0.25, 8.0)  # first, longest


@dataclass(eq=False)
class Tries:
    """Counts the tries of one request."""

    attempts: int = 0  # that the request itself may be to blame for
    losses: int = 0  # the server died
    was_oldest: bool = True  # of all requests under way, when its last try ended
    declined: int = 0  # in a row: for the server's load, by a gateway without a server, or by a broken connection
    began: float = field(default_factory=time.monotonic)
    _declined_since: float = math.inf

    def count(self, trouble: Trouble, *, up: bool) -> None:
        """Counts a failed try; `up`: the server is healthy."""
        if trouble.cause in ("busy", "gateway") or (trouble.cause == "lost" and up):
            self.declined += 1
            self._declined_since = min(self._declined_since, time.monotonic())
            return
        self.declined, self._declined_since = 0, math.inf
        if up:
            self.attempts += 1
        else:
            self.losses += 1

    @property
    def is_suspect(self) -> bool:
        """Whether the server may have died of this request."""
        return self.losses >= SUSPECT_LOSSES

    @property
    def are_over(self) -> bool:
        """Whether there is no use in another."""
        return self.attempts >= MAX_ATTEMPTS or self.losses >= MAX_SERVER_LOSSES

    @property
    def is_last(self) -> bool:
        """Whether the one under way is the last attempt."""
        return self.attempts == MAX_ATTEMPTS - 1

    def declined_for(self) -> float:
        """Seconds since the first of the last tries that were all declined."""
        return max(0.0, time.monotonic() - self._declined_since)

    def pause_seconds(self) -> float:
        """Seconds before the next try; random, so that not all come back at once."""
        first, longest = BACKOFF_SECONDS
        tries = min(self.attempts + self.losses + self.declined, 10)
        return random.uniform(0.5, 1) * min(longest, first * 2.0**tries)
