"""What looks at an endpoint show: how fast it is at a limit, whether it is full, and what more requests are worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TAKEN_IN = 0.8  # share of the requests in flight that the engine runs; the rest is in transit
STALL_SECONDS = 0.8  # requests wait and the running count does not grow: the engine is full
STEADY = 0.8  # the least running count of a full engine, as a share of the greatest
AWAY_SECONDS = 8.0  # between two samples; a look takes up to 5
# Gauges change once a step, and requests that arrive together wait for one step: on a slow server for seconds.
FEWEST_STEPS = 4
MOST_LOOKS = 6  # of a mean; what a server did before has less and less weight
USUAL_NOISE = 0.03  # relative error of a look, before any was seen
MOST_DIFFERENCES = 20  # looks that tell it; what a server did before has less and less weight


@dataclass(frozen=True)
class Sample:
    """One look at an endpoint; counters start with the server or the client."""

    at: float  # monotonic seconds
    in_flight: int  # our requests
    answered: int  # ours
    running: float
    waiting: float
    tokens: float  # generated
    pace_seconds: float  # for `pace_count` tokens or requests
    pace_count: float
    kv_cache_usage: float = 0.0
    preemptions: float = 0.0
    by_requests: bool = False  # no server metrics: pace and tokens come from answered requests


@dataclass(frozen=True)
class Level:
    """What a limit achieved: tokens per second, and seconds between two tokens of an answer; a mean of looks."""

    limit: int
    tokens_per_second: float
    pace: float
    looks: int = 1

    def with_look(self, look: "Level") -> "Level":
        """The mean with another look: one alone is off by a fifth on a busy machine."""
        looks = min(MOST_LOOKS, self.looks + 1)
        old, new = (looks - 1) / looks, 1 / looks
        tokens = old * self.tokens_per_second + new * look.tokens_per_second
        return Level(self.limit, tokens, old * self.pace + new * look.pace, looks)


class Noise:
    """How much looks at one limit differ: what a comparison of two limits must exceed."""

    def __init__(self) -> None:
        self._variance, self._count = USUAL_NOISE**2, 1

    def add(self, look: Sequence[Sample]) -> None:
        """Takes in a look: how much its halves differ."""
        half = len(look) // 2
        first, second = (level_of(1, part) for part in (look[: half + 1], look[half:]))
        if first is not None and second is not None and min(first.tokens_per_second, second.tokens_per_second) > 0:
            difference = math.log(second.tokens_per_second / first.tokens_per_second)
            self._count = min(MOST_DIFFERENCES, self._count + 1)
            self._variance += (difference**2 / 4 - self._variance) / self._count

    def error(self, small: Level, large: Level) -> float:
        """The standard error of the worth of the larger limit's extra requests."""
        of_ratio = math.sqrt(self._variance * (1 / small.looks + 1 / large.looks))
        return large.tokens_per_second / max(1e-9, small.tokens_per_second) * of_ratio / (large.limit / small.limit - 1)


def level_of(limit: int, samples: Sequence[Sample]) -> Level | None:
    """What the limit achieved over the samples; None before the first token."""
    first, last = samples[0], samples[-1]
    seconds, gaps = last.at - first.at, last.pace_count - first.pace_count
    if seconds <= 0 or gaps <= 0:
        return None
    pace = (last.pace_seconds - first.pace_seconds) / gaps
    return Level(limit, (last.tokens - first.tokens) / seconds, pace)


def is_a_new_start(last: Sample, sample: Sample) -> bool:
    """Whether the samples are not comparable: the server restarted, was away, or is measured differently."""
    went_back = sample.pace_count < last.pace_count or sample.tokens < last.tokens
    return went_back or sample.by_requests != last.by_requests or sample.at - last.at > AWAY_SECONDS


def shows(limit: int, samples: Sequence[Sample]) -> bool:
    """Whether the samples reflect this limit: tokens after a few steps, requests once the earlier ones are answered."""
    if samples[-1].by_requests:
        return samples[-1].answered - samples[0].answered >= 2 * limit
    return len({one.tokens for one in samples}) >= FEWEST_STEPS


def is_full(sample: Sample) -> bool:
    """Whether requests wait, in the engine's queue or ahead of it."""
    return sample.waiting >= 1 or sample.running < TAKEN_IN * sample.in_flight


def full_at(samples: Sequence[Sample]) -> float | None:
    """How many requests the engine runs, if it has been full for a while; else None."""
    last = samples[-1]
    recent = [one for one in samples if last.at - one.at <= STALL_SECONDS]
    running = [one.running for one in recent]
    steady = last.running <= 1.02 * running[0] and min(running) >= STEADY * max(running)
    long = last.at - samples[0].at >= STALL_SECONDS
    return max(running) if long and steady and all(map(is_full, recent)) and shows(1, recent) else None


def spare(sample: Sample) -> float:
    """Requests that should wait: a short queue keeps the batch full while answers are in transit."""
    return max(1.0, 0.05 * sample.running)


def worth(small: Level, large: Level, *, by_pace: bool = False) -> float:
    """The worth of the larger limit's extra requests: 1 if each brings as much as the others, 0 if nothing."""
    ratio = large.limit / small.limit
    if by_pace:
        gain = ratio * small.pace / large.pace if large.pace else ratio
    else:
        gain = large.tokens_per_second / small.tokens_per_second if small.tokens_per_second else ratio
    return (gain - 1) / (ratio - 1)


def knee(small: Level, large: Level, share: float) -> float:
    """Where more requests stop to bring anything, if the larger limit's are worth this share and the knee is sharp."""
    return small.limit + share * (large.limit - small.limit)
