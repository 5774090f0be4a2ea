"""Finds how many requests to keep in flight at an endpoint, from vLLM's own metrics, and follows changes.

vLLM queues what it cannot run and never sends a 429, so neither errors nor latency alone show the right number. Two
things do. If requests wait in the engine's queue, there are too many: they can be removed without loss. If none wait,
the token rate shows whether a larger batch still produces more tokens per second.

The limit starts small and doubles as long as that doubles the tokens. Then it holds: the part of the queue that never
drains is removed, and from time to time a larger or smaller limit is tried for a few seconds and adopted if it pays.
"""

import math
from collections import deque
from dataclasses import dataclass

FIRST_LIMIT = 4
CEILING = 2048  # requests per endpoint; twice vLLM's default maximum of running sequences
USED = 0.9  # minimum share of the limit in flight for a sample to count
TAKEN_IN = 0.8  # share of the requests in flight that the engine runs; the rest is in transit
RAMP_SECONDS = 0.15  # at each limit, while it doubles
RAMP_POLL_SECONDS, HOLD_POLL_SECONDS = 0.05, 0.5
STALL_SECONDS = 0.8  # requests wait and the running count does not grow: the engine is full
SETTLED_PAUSE_SECONDS = 8.0  # from this pause on, trials alternate between less and more
HOLD_SECONDS = 2.5  # window for judging a limit that holds
SURE_SECONDS, END_SECONDS = 0.8, 2.0  # at the first limit, and after a step that brings little; before the ramp ends
NEARLY_ALL = 0.75  # worth (see `_worth`) of a step that needs no second look
STILL_CLIMBING = 0.2  # worth of a ramp step that justifies another one
STILL_CLIMBING_BY_REQUESTS = 0.75  # higher, as requests from before the step blur its effect
WORTHWHILE = 0.1  # from this worth on, the larger of two limits wins
CLEARLY = 0.5  # from this worth on, the next trial may take a bigger step
TRIAL, TRIAL_OF_LESS = 1.3, 1.15  # ratio of the larger to the smaller limit; trying less costs throughput
TRIAL_PAUSE_SECONDS = (2.0, 60.0)  # first; longest after trials that did not pay
SETTLE_SECONDS = (0.5, 10.0)  # bounds; in between, half the lifetime of a request
MOVED = 1.25  # if the pace changes by this factor at a constant limit, the knee has moved
FULL_CACHE = 0.95
AWAY_SECONDS = 8.0  # between two samples; a look takes up to 5
SMALL = 8  # limits below this are not worth a trial of less
PREEMPTED = 0.5  # preemptions per answer
KEPT_CHANGES = 200


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
class Change:
    """A new limit and its reason."""

    at: float
    limit: int
    why: str


@dataclass(frozen=True)
class Level:
    """What a limit achieved: tokens per second, and seconds between two tokens of an answer."""

    limit: int
    tokens_per_second: float
    pace: float


class ConcurrencyController:
    """The limit of one endpoint, adjusted by `update`. Pure: time and measurements come with the samples."""

    def __init__(self, ceiling: int = CEILING) -> None:
        self.limit = min(FIRST_LIMIT, ceiling)
        self.changes: deque[Change] = deque(maxlen=KEPT_CHANGES)
        self._ceiling = ceiling
        self._ramping = True
        self._before: Level | None = None  # the previous ramp step, or the baseline of the current trial
        self._below_counts = False
        self._upwards = False  # direction of the last routine trial
        self._pause = TRIAL_PAUSE_SECONDS[0]
        self._next_trial = 0.0
        self._ratio = TRIAL  # of the next upward trial
        self._usual_pace = 0.0  # at this limit
        self._window: list[Sample] = []  # at this limit, while it is in use

    @property
    def is_climbing(self) -> bool:
        """Whether it is still looking for what the endpoint can use."""
        return self._ramping

    @property
    def poll_seconds(self) -> float:
        """Seconds between two samples."""
        return RAMP_POLL_SECONDS if self._ramping else HOLD_POLL_SECONDS

    def update(self, sample: Sample) -> None:
        """Takes a sample into account; `limit` may change."""
        if self._window and _is_a_new_start(self._window[-1], sample):
            self._window.clear()
            self._before = None
        if not USED * self.limit <= sample.in_flight <= self.limit + 1:
            self._window.clear()  # too few requests, or too many left from a higher limit: shows nothing
            return
        self._window.append(sample)
        if self._ramping:
            self._ramp(sample)
        else:
            self._hold(sample)

    def reduce(self, at: float, why: str) -> None:
        """Halves the limit and makes that the ceiling: the server ran out of memory."""
        self._ceiling = max(1, self.limit // 2)
        self._set(at, self._ceiling, why)
        self._ramping, self._before = False, None

    def restart(self, at: float, why: str) -> None:
        """Looks for the limit from the start: what was measured so far does not count."""
        self._ramping, self._before, self._pause, self._usual_pace = True, None, TRIAL_PAUSE_SECONDS[0], 0.0
        self.changes.append(Change(at, self.limit, why))
        self._window.clear()

    def _ramp(self, sample: Sample) -> None:
        level, seconds = self._level(self._window), sample.at - self._window[0].at
        if _is_full(sample):
            recent = [one for one in self._window if sample.at - one.at <= STALL_SECONDS]
            stalled = all(map(_is_full, recent)) and sample.running <= 1.02 * recent[0].running
            if seconds >= STALL_SECONDS and stalled:
                limit = math.ceil(sample.running + _spare(sample)) if sample.waiting >= 1 else self.limit
                self._end_ramp(sample.at, min(limit, self.limit), f"the engine runs {sample.running:.0f} requests")
        elif self.limit >= self._ceiling:
            self._end_ramp(sample.at, self.limit, "")
        elif level is None:
            del self._window[:-1]  # time to the first token is not this limit's pace
        elif seconds >= RAMP_SECONDS and self._shows(self._window):
            self._climb(sample, level, sure=seconds >= SURE_SECONDS)

    def _climb(self, sample: Sample, level: Level, *, sure: bool) -> None:
        """Takes the next ramp step or ends the ramp; waits if the last step needs a longer look."""
        below = self._before or Level(level.limit // 2, level.tokens_per_second / 2, level.pace)
        worth = _worth(below, level, by_pace=True)
        if not sure and (self._before is None or worth < NEARLY_ALL):
            return
        counts = self._window[-1].answered - self._window[0].answered >= 2 * self.limit
        if sure and counts and self._below_counts:  # prefill slows the pace; the token rate includes it
            worth = max(worth, _worth(below, level))
        worth = max(0.0, min(1.0, worth))
        if worth < STILL_CLIMBING and self._window[-1].at - self._window[0].at < END_SECONDS:
            return
        self._below_counts = sure and counts
        why = f"the last step gained {worth:.0%} of its share"
        if worth >= (STILL_CLIMBING_BY_REQUESTS if sample.by_requests else STILL_CLIMBING):
            self._before = level
            # With a sharp knee below this limit, this stops at twice the knee.
            self._set(sample.at, round(self.limit * (1 + worth)), why)
        else:
            knee = below.limit + worth * (level.limit - below.limit)
            self._end_ramp(sample.at, math.ceil(1.1 * knee), why)

    def _end_ramp(self, at: float, limit: int, why: str) -> None:
        self._ramping, self._before = False, None
        self._next_trial = at + self._pause
        self._set(at, limit, why)

    def _hold(self, sample: Sample) -> None:
        settling = self._settling_seconds()
        settled = [one for one in self._window if one.at - self._window[0].at >= settling]
        if not settled or sample.at - settled[0].at < HOLD_SECONDS or not self._shows(settled):
            return
        if (level := self._level(settled)) is None:
            return
        always_waiting = min(one.waiting for one in settled)
        # Others may use the server too: only our share of the queue is ours to remove.
        ours = sample.in_flight / max(1.0, sample.in_flight, sample.running + sample.waiting)
        if (surplus := math.floor(ours * (always_waiting - _spare(sample)))) >= 1:
            self._end_trial(sample.at, worth_it=False)
            least = 1 if ours > 0.5 else min(self.limit, FIRST_LIMIT)  # other clients would fill the gap
            self._set(sample.at, max(least, self.limit - surplus), f"{always_waiting:.0f} requests were always waiting")
        elif self._before is not None:
            self._judge(sample.at, self._before, level)
        elif trial := self._due_trial(settled, level, always_waiting):
            limit, why = trial
            self._before = level
            self._set(sample.at, limit, f"trial: {why}")
        self._window.clear()

    def _due_trial(self, settled: list[Sample], level: Level, always_waiting: float) -> tuple[int, str] | None:
        """A limit that may be better, and why; None if no trial is due."""
        first, last = settled[0], settled[-1]
        usual, self._usual_pace = self._usual_pace, self._usual_pace or level.pace
        if usual and level.pace > MOVED * usual:
            self._usual_pace = level.pace
            return math.floor(self.limit * max(0.5, usual / level.pace)), "tokens come more slowly than before"
        if usual and level.pace < usual / MOVED:
            self._usual_pace = level.pace
            self._next_trial = last.at
        if last.at < self._next_trial:
            return None
        if last.preemptions - first.preemptions > PREEMPTED * (last.answered - first.answered):
            return math.floor(self.limit / TRIAL_OF_LESS), "the KV cache overflows, requests are preempted"
        if always_waiting >= 1:
            return None  # a short queue is right
        self._upwards = not self._upwards or self.limit < SMALL or self._pause < SETTLED_PAUSE_SECONDS
        if not self._upwards:
            return math.floor(self.limit / TRIAL_OF_LESS), "a lower limit may be enough"
        if last.kv_cache_usage < FULL_CACHE and self.limit < self._ceiling:
            return math.ceil(self.limit * self._ratio), "no requests wait"
        return None

    def _judge(self, at: float, before: Level, level: Level) -> None:
        """Ends a trial and adopts the better limit."""
        small, large = sorted((before, level), key=lambda one: one.limit)
        worth = _worth(small, large) if small.limit < large.limit else 0.0
        better = large if worth >= WORTHWHILE else small
        clearly = level is better is large and worth >= CLEARLY
        self._ratio = min(2.0, 1 + worth) if clearly else TRIAL
        self._end_trial(at, worth_it=better is level)
        self._usual_pace = better.pace
        if better is level is large:  # keep climbing
            self._before = level
            self._set(at, math.ceil(self.limit * self._ratio), f"{large.limit} gained {worth:.0%} of its share")
            return
        gain = 100 * (large.tokens_per_second / max(1e-9, small.tokens_per_second) - 1)
        self._set(at, better.limit, f"{large.limit} gave {gain:+.0f} % tokens over {small.limit}")

    def _end_trial(self, at: float, *, worth_it: bool) -> None:
        """Schedules the next trial: soon after a successful upward one, later after each failure."""
        if self._before is not None:
            shortest, longest = TRIAL_PAUSE_SECONDS
            of_more = self.limit >= self._before.limit
            if not worth_it:
                self._pause = min(longest, 2 * self._pause)
            elif of_more:
                self._pause = shortest
            else:
                self._upwards = True  # the next trial flips it
            self._next_trial = at + self._pause
            self._usual_pace = 0.0
        self._before = None

    def _shows(self, samples: list[Sample]) -> bool:
        """Whether the samples reflect this limit: tokens do at once, requests once the earlier ones are answered."""
        return not samples[-1].by_requests or samples[-1].answered - samples[0].answered >= 2 * self.limit

    def _settling_seconds(self) -> float:
        """Half the lifetime of a request, by Little's law: the time a new limit takes to show."""
        first, last = self._window[0], self._window[-1]
        answered = last.answered - first.answered
        least, most = SETTLE_SECONDS
        if not answered:
            return most
        return min(most, max(least, 0.5 * last.in_flight * (last.at - first.at) / answered))

    def _level(self, samples: list[Sample]) -> Level | None:
        """What the limit achieved over the samples; None before the first token."""
        first, last = samples[0], samples[-1]
        seconds, gaps = last.at - first.at, last.pace_count - first.pace_count
        if seconds <= 0 or gaps <= 0:
            return None
        pace = (last.pace_seconds - first.pace_seconds) / gaps
        return Level(self.limit, (last.tokens - first.tokens) / seconds, pace)

    def _set(self, at: float, limit: int, why: str) -> None:
        limit = max(1, min(limit, self._ceiling))
        if limit != self.limit:
            self.limit = limit
            self.changes.append(Change(at, limit, why))
        self._window.clear()


def _is_a_new_start(last: Sample, sample: Sample) -> bool:
    """Whether the samples are not comparable: the server restarted, was away, or is measured differently."""
    went_back = sample.pace_count < last.pace_count or sample.tokens < last.tokens
    return went_back or sample.by_requests != last.by_requests or sample.at - last.at > AWAY_SECONDS


def _is_full(sample: Sample) -> bool:
    """Whether requests wait, in the engine's queue or ahead of it."""
    return sample.waiting >= 1 or sample.running < TAKEN_IN * sample.in_flight


def _spare(sample: Sample) -> float:
    """Requests that should wait: a short queue keeps the batch full while answers are in transit."""
    return max(1.0, 0.05 * sample.running)


def _worth(small: Level, large: Level, *, by_pace: bool = False) -> float:
    """The worth of the larger limit's extra requests: 1 if each brings as much as the others, 0 if nothing."""
    ratio = large.limit / small.limit
    if by_pace:
        gain = ratio * small.pace / large.pace if large.pace else ratio
    else:
        gain = large.tokens_per_second / small.tokens_per_second if small.tokens_per_second else ratio
    return (gain - 1) / (ratio - 1)
