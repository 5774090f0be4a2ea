"""How many requests an endpoint should hold: found from what vLLM says of itself, and followed when it moves.

vLLM queues what it cannot run and never sends a 429, so neither errors nor latency alone show the right number. What
shows it: requests that wait in the engine's queue are too many (they can be taken away without loss); where nothing
waits, the pace of the tokens tells whether more requests in the batch still bring more tokens a second.

The limit starts small and grows as the tokens do: it doubles for as long as a doubling doubles them. After that it is
held, the part of the queue that is always there is taken away, and now and then a larger or smaller limit is tried for
a few seconds and kept if it was worth it.
"""

import math
from collections import deque
from dataclasses import dataclass

FIRST_LIMIT = 4
CEILING = 2048  # requests an endpoint; twice the most sequences that vLLM runs by default
USED = 0.9  # share of the limit that must be in flight for the endpoint to show anything
TAKEN_IN = 0.8  # share of what is in flight that the engine runs; the rest travels
RAMP_SECONDS = 0.15  # at one limit, while it doubles
RAMP_POLL_SECONDS, HOLD_POLL_SECONDS = 0.05, 0.5
STALL_SECONDS = 0.8  # without more running, with requests waiting: the engine takes no more
SETTLED_PAUSE_SECONDS = 8.0  # from this pause on less is tried in turn with more: until then more is likelier
HOLD_SECONDS = 2.5  # of one look at a limit that is held
SURE_SECONDS = 0.8  # at the first limit, and where a step seems to have brought little
END_SECONDS = 2.0  # before the ramp is ended
NEARLY_ALL = 0.75  # worth (see below) of a step that needs no second look
STILL_CLIMBING = 0.2  # worth of a step of the ramp, for another one
STILL_CLIMBING_BY_REQUESTS = 0.75  # those who were on their way blur what a step brought
WORTHWHILE = 0.1  # from this worth on the larger of two limits is kept
CLEARLY = 0.5  # from this worth on the next trial may be a larger one
TRIAL, TRIAL_OF_LESS = 1.3, 1.15  # ratio of the larger limit to the smaller in a trial; less costs while it is tried
TRIAL_PAUSE_SECONDS = (2.0, 60.0)  # first, and longest after trials that were not worth it
SETTLE_SECONDS = (0.5, 10.0)  # least and most; else half the life of a request
MOVED = 1.25  # a pace that changes by this much without our doing means that the knee has moved
FULL_CACHE = 0.95
AWAY_SECONDS = 5.0  # between two samples
SMALL = 8  # a limit that is not worth the trial of a smaller one
PREEMPTED = 0.5  # preemptions an answer
KEPT_CHANGES = 200


@dataclass(frozen=True)
class Sample:
    """One look at an endpoint; counts that only grow count from the server's or the client's start."""

    at: float  # monotonic seconds
    in_flight: int  # our requests
    answered: int  # ours
    running: float
    waiting: float
    tokens: float  # written
    pace_seconds: float  # spent on `pace_count` tokens or requests
    pace_count: float
    kv_cache_usage: float = 0.0
    preemptions: float = 0.0
    by_requests: bool = False  # the server has no metrics: pace and tokens are those of answered requests


@dataclass(frozen=True)
class Change:
    """A new limit, and why."""

    at: float
    limit: int
    why: str


@dataclass(frozen=True)
class Level:
    """What a limit brought: tokens a second, and seconds between two tokens of an answer."""

    limit: int
    tokens_per_second: float
    pace: float


class ConcurrencyController:
    """The limit of one endpoint, moved by `update`. Pure: time and measurements come with the samples."""

    def __init__(self, ceiling: int = CEILING) -> None:
        self.limit = min(FIRST_LIMIT, ceiling)
        self.changes: deque[Change] = deque(maxlen=KEPT_CHANGES)
        self._ceiling = ceiling
        self._ramping = True
        self._before: Level | None = None  # the rung below, or what the trial that is going on is compared with
        self._below_counts = False
        self._upwards = False  # the direction of the last trial without a particular reason
        self._pause = TRIAL_PAUSE_SECONDS[0]
        self._next_trial = 0.0
        self._ratio = TRIAL  # of the next trial of more
        self._usual_pace = 0.0  # at this limit
        self._window: list[Sample] = []  # at this limit, while it is used

    @property
    def is_climbing(self) -> bool:
        """Whether it has not yet found what the endpoint can use."""
        return self._ramping

    @property
    def poll_seconds(self) -> float:
        """How often to look."""
        return RAMP_POLL_SECONDS if self._ramping else HOLD_POLL_SECONDS

    def update(self, sample: Sample) -> None:
        """Takes a sample into account; `limit` may be another one afterwards."""
        if self._window and _is_a_new_start(self._window[-1], sample):
            self._window.clear()
            self._before = None
        if not USED * self.limit <= sample.in_flight <= self.limit + 1:
            self._window.clear()  # too little to do, or still the requests of a higher limit: nothing can be learned
            return
        self._window.append(sample)
        if self._ramping:
            self._ramp(sample)
        else:
            self._hold(sample)

    def reduce(self, at: float, why: str) -> None:
        """Halves the limit and stays below the old one: the server ran out of memory."""
        self._ceiling = max(1, self.limit // 2)
        self._set(at, self._ceiling, why)
        self._ramping, self._before = False, None

    def _ramp(self, sample: Sample) -> None:
        level, seconds = self._level(self._window), sample.at - self._window[0].at
        if _is_full(sample):
            recent = [one for one in self._window if sample.at - one.at <= STALL_SECONDS]
            stalled = all(map(_is_full, recent)) and sample.running <= 1.02 * recent[0].running
            if seconds >= STALL_SECONDS and stalled:
                limit = math.ceil(sample.running + _spare(sample)) if sample.waiting >= 1 else self.limit
                self._end_ramp(sample.at, min(limit, self.limit), f"the engine runs {sample.running:.0f} at once")
        elif self.limit >= self._ceiling:
            self._end_ramp(sample.at, self.limit, "")
        elif level is None:
            del self._window[:-1]  # nothing is written yet, and that is not this limit's pace
        elif seconds >= RAMP_SECONDS and self._shows(self._window):
            self._climb(sample, level, sure=seconds >= SURE_SECONDS)

    def _climb(self, sample: Sample, level: Level, *, sure: bool) -> None:
        """The next step of the ramp, or its end; no step yet where the last one has to be looked at for longer."""
        below = self._before or Level(level.limit // 2, level.tokens_per_second / 2, level.pace)
        worth = _worth(below, level, by_pace=True)
        if not sure and (self._before is None or worth < NEARLY_ALL):
            return
        counts = self._window[-1].answered - self._window[0].answered >= 2 * self.limit
        if sure and counts and self._below_counts:  # the pace suffers while new requests are read; all tokens tell
            worth = max(worth, _worth(below, level))
        worth = max(0.0, min(1.0, worth))
        if worth < STILL_CLIMBING and self._window[-1].at - self._window[0].at < END_SECONDS:
            return
        self._below_counts = sure and counts
        why = f"the last step brought {worth:.0%} of its share"
        if worth >= (STILL_CLIMBING_BY_REQUESTS if sample.by_requests else STILL_CLIMBING):
            self._before = level
            # Were there a sharp knee below this limit, twice the knee would be just here: never more is asked for.
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
        # Others may use the server too: of what waits only our share is ours to take away.
        ours = sample.in_flight / max(1.0, sample.in_flight, sample.running + sample.waiting)
        if (surplus := math.floor(ours * (always_waiting - _spare(sample)))) >= 1:
            self._end_trial(sample.at, worth_it=False)
            least = 1 if ours > 0.5 else min(self.limit, FIRST_LIMIT)  # others would only take what we give up
            self._set(sample.at, max(least, self.limit - surplus), f"{always_waiting:.0f} requests were always waiting")
        elif self._before is not None:
            self._judge(sample.at, self._before, level)
        elif trial := self._due_trial(settled, level, always_waiting):
            limit, why = trial
            self._before = level
            self._set(sample.at, limit, f"trial: {why}")
        self._window.clear()

    def _due_trial(self, settled: list[Sample], level: Level, always_waiting: float) -> tuple[int, str] | None:
        """A limit that may be better, and why; None while there is no reason to look for one."""
        first, last = settled[0], settled[-1]
        usual, self._usual_pace = self._usual_pace, self._usual_pace or level.pace
        if usual and level.pace > MOVED * usual:
            self._usual_pace = level.pace
            return math.floor(self.limit * max(0.5, usual / level.pace)), "tokens come slower than before"
        if usual and level.pace < usual / MOVED:
            self._usual_pace = level.pace
            self._next_trial = last.at
        if last.at < self._next_trial:
            return None
        if last.preemptions - first.preemptions > PREEMPTED * (last.answered - first.answered):
            return math.floor(self.limit / TRIAL_OF_LESS), "the KV cache overflows, requests are preempted"
        if always_waiting >= 1:
            return None  # as it should be
        self._upwards = not self._upwards or self.limit < SMALL or self._pause < SETTLED_PAUSE_SECONDS
        if not self._upwards:
            return math.floor(self.limit / TRIAL_OF_LESS), "less may do"
        if last.kv_cache_usage < FULL_CACHE and self.limit < self._ceiling:
            return math.ceil(self.limit * self._ratio), "nothing waits"
        return None

    def _judge(self, at: float, before: Level, level: Level) -> None:
        """Ends a trial with the better of both limits."""
        small, large = sorted((before, level), key=lambda one: one.limit)
        worth = _worth(small, large) if small.limit < large.limit else 0.0
        better = large if worth >= WORTHWHILE else small
        clearly = level is better is large and worth >= CLEARLY
        self._ratio = min(2.0, 1 + worth) if clearly else TRIAL
        self._end_trial(at, worth_it=better is level)
        self._usual_pace = better.pace
        if better is level is large:  # and on
            self._before = level
            self._set(at, math.ceil(self.limit * self._ratio), f"{large.limit} brought {worth:.0%} of its share")
            return
        gain = 100 * (large.tokens_per_second / max(1e-9, small.tokens_per_second) - 1)
        self._set(at, better.limit, f"{large.limit} brought {gain:+.0f} % tokens over {small.limit}")

    def _end_trial(self, at: float, *, worth_it: bool) -> None:
        """After a good one of more the next comes soon, after bad ones ever later."""
        if self._before is not None:
            shortest, longest = TRIAL_PAUSE_SECONDS
            of_more = self.limit >= self._before.limit
            if not worth_it:
                self._pause = min(longest, 2 * self._pause)
            elif of_more:
                self._pause = shortest
            else:
                self._upwards = True  # which the next trial turns round
            self._next_trial = at + self._pause
            self._usual_pace = 0.0
        self._before = None

    def _shows(self, samples: list[Sample]) -> bool:
        """Whether what was counted is of this limit: tokens are at once, requests once those of before are answered."""
        return not samples[-1].by_requests or samples[-1].answered - samples[0].answered >= 2 * self.limit

    def _settling_seconds(self) -> float:
        """Half the life of a request, by Little's law: until then a new limit does not show."""
        first, last = self._window[0], self._window[-1]
        answered = last.answered - first.answered
        least, most = SETTLE_SECONDS
        if not answered:
            return most
        return min(most, max(least, 0.5 * last.in_flight * (last.at - first.at) / answered))

    def _level(self, samples: list[Sample]) -> Level | None:
        """What the samples say of the limit; None while no token was written."""
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
    """Whether the two cannot be compared: the server has started again, or was away, or is measured otherwise."""
    went_back = sample.pace_count < last.pace_count or sample.tokens < last.tokens
    return went_back or sample.by_requests != last.by_requests or sample.at - last.at > AWAY_SECONDS


def _is_full(sample: Sample) -> bool:
    """Whether the server has not yet taken in what it was given: requests wait, in the engine's queue or before it."""
    return sample.waiting >= 1 or sample.running < TAKEN_IN * sample.in_flight


def _spare(sample: Sample) -> float:
    """Requests that should wait: a short queue keeps the batch full while answers travel."""
    return max(1.0, 0.05 * sample.running)


def _worth(small: Level, large: Level, *, by_pace: bool = False) -> float:
    """What the requests that the larger limit has more are worth: 1 as much as the others, 0 nothing."""
    ratio = large.limit / small.limit
    if by_pace:
        gain = ratio * small.pace / large.pace if large.pace else ratio
    else:
        gain = large.tokens_per_second / small.tokens_per_second if small.tokens_per_second else ratio
    return (gain - 1) / (ratio - 1)
