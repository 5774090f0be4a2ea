"""Finds how many requests to keep in flight at an endpoint, from vLLM's own metrics, and follows changes.

vLLM queues what it cannot run and never sends a 429, so neither errors nor latency alone show the right number. Two
things do. If requests wait in the engine's queue, there are too many: they can be removed without loss. If none wait,
the token rate shows whether a larger batch still produces more tokens per second.

The limit starts small and doubles as long as that doubles the tokens. Then it holds: the part of the queue that never
drains is removed, and from time to time another limit is tried for a few seconds and adopted if it pays. In doubt, the
larger limit stays: requests too many cost nothing but memory, requests too few leave the engine idle.
"""

import math
from collections import deque
from dataclasses import dataclass

from vllm_annotate.inference.samples import (
    Level,
    Noise,
    Sample,
    full_at,
    is_a_new_start,
    is_full,
    knee,
    level_of,
    shows,
    spare,
    worth,
)

FIRST_LIMIT = 4
CEILING = 2048  # requests per endpoint; twice vLLM's default maximum of running sequences
USED = 0.9  # minimum share of the limit in flight for a sample to count
RAMP_SECONDS = 0.15  # at each limit, while it doubles
RAMP_POLL_SECONDS, HOLD_POLL_SECONDS = 0.05, 0.5
SURE_SECONDS = 0.8  # at the first limit
# The worth (see `worth`) of a ramp step that justifies another one: much at once, less after `END_SECONDS`.
NEARLY_ALL, STILL_CLIMBING, END_SECONDS = 0.75, 0.1, 3.0
GIVE_UP_SECONDS = 4.0  # at a limit that brings too little, before the ramp ends
STILL_CLIMBING_BY_REQUESTS = 0.75  # higher, as requests from before the step blur its effect
HOLD_SECONDS = 2.5  # of a look at a limit that holds
LOOKS, MOST_TRIAL_LOOKS = 2, 3  # before the smaller of two limits wins; while a trial of less is undecided
WORTHWHILE = 0.1  # from this worth on, the larger of two limits wins
CLEARLY, CLEARLY_WORSE = 0.5, 0.25  # worth of the larger limit that needs no second look: in a trial of more; of less
TRIAL, NEXT_TRIAL = 1.6, 1.3  # ratio of the larger to the smaller limit: the first time; after one that did not pay
LESS_MEMORY = 1.15  # the same if requests are preempted
ROOM = 1.1  # above a knee
TRIAL_PAUSE_SECONDS = (2.0, 60.0)  # first; longest after trials that did not pay
SETTLE_SECONDS = (0.5, 10.0)  # bounds; in between, half the lifetime of a request
MOVED = 1.25  # if the pace changes by this factor at a constant limit, the knee has moved
FULL_CACHE = 0.95
PREEMPTED = 0.5  # preemptions per answer
KEPT_CHANGES = 200
LESS_MAY_DO = "trial: a lower limit may be enough"


@dataclass(frozen=True)
class Change:
    """A new limit and its reason."""

    at: float
    limit: int
    why: str


class ConcurrencyController:
    """The limit of one endpoint, adjusted by `update`. Pure: time and measurements come with the samples."""

    def __init__(self, ceiling: int = CEILING) -> None:
        self.limit = min(FIRST_LIMIT, ceiling)
        self.changes: deque[Change] = deque(maxlen=KEPT_CHANGES)
        self._ceiling = ceiling
        self._ramping = True
        self._before: Level | None = None  # an earlier ramp step, or the baseline of the current trial
        self._below_counts = False  # the tokens of that step show its limit
        self._less = 0  # a lower limit to try next; 0 for none
        self._ratio = TRIAL  # of the next upward trial
        self._pause = TRIAL_PAUSE_SECONDS[0]
        self._next_trial = 0.0
        self._window: list[Sample] = []  # at this limit, while it is in use
        self._settled = False  # the window begins when the limit shows
        self._mean: Level | None = None  # of the looks at this limit
        self._noise = Noise()
        self._moved = False  # the last look showed another pace

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
        if self._window and is_a_new_start(self._window[-1], sample):
            self._forget()
            self._before = None
        if not USED * self.limit <= sample.in_flight <= self.limit + 1:
            self._window, self._settled = [], False  # too few requests, or too many left from a higher limit
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
        self._ramping, self._before, self._less, self._pause = True, None, 0, TRIAL_PAUSE_SECONDS[0]
        self.changes.append(Change(at, self.limit, why))
        self._forget()

    def _ramp(self, sample: Sample) -> None:
        level, seconds = level_of(self.limit, self._window), sample.at - self._window[0].at
        if is_full(sample):
            if (running := full_at(self._window)) is not None:
                limit = math.ceil(running + spare(sample)) if sample.waiting >= 1 else self.limit
                self._end_ramp(sample.at, min(limit, self.limit), f"the engine runs {running:.0f} requests")
        elif self.limit >= self._ceiling:
            self._end_ramp(sample.at, self.limit, "")
        elif level is None:
            del self._window[:-1]  # time to the first token is not this limit's pace
        elif 2 * sum(map(is_full, self._window)) > len(self._window):
            pass  # it has been full more often than not: a moment without a queue is no reason to climb
        elif seconds >= (RAMP_SECONDS if self._before else SURE_SECONDS) and shows(self.limit, self._window):
            self._climb(sample, level, seconds)

    def _climb(self, sample: Sample, level: Level, seconds: float) -> None:
        """Takes the next ramp step or ends the ramp; waits while the last step has shown too little."""
        below = self._before or Level(level.limit // 2, level.tokens_per_second / 2, level.pace)
        share = worth(below, level, by_pace=True)
        counts = sample.answered - self._window[0].answered >= 2 * self.limit
        if counts:  # prefill slows the pace; the token rate includes it
            level = level_of(self.limit, self._window[len(self._window) // 2 :]) or level
            share = max(share, worth(below, level)) if self._below_counts else share
        share = max(0.0, min(1.0, share))
        enough = NEARLY_ALL - (NEARLY_ALL - STILL_CLIMBING) * min(1.0, seconds / END_SECONDS)
        # With a sharp knee below this limit, this stops at twice the knee.
        next_limit = round(2 * knee(below, level, share))
        if next_limit >= (1 + (STILL_CLIMBING_BY_REQUESTS if sample.by_requests else enough)) * self.limit:
            # After a small step, the next is compared with the same limit as this: noise hides what two alike differ.
            self._before = level if next_limit >= 1.5 * self.limit else below
            self._below_counts = counts and self._before is level
            self._set(sample.at, next_limit, f"the last step gained {share:.0%} of its share")
        elif seconds >= GIVE_UP_SECONDS:
            self._less = math.ceil(ROOM * knee(below, level, share))
            self._end_ramp(sample.at, self.limit, "")

    def _end_ramp(self, at: float, limit: int, why: str) -> None:
        self._ramping, self._before = False, None
        self._next_trial = at + self._pause
        self._set(at, limit, why)

    def _hold(self, sample: Sample) -> None:
        """Looks at what the limit achieves: removes a queue, or begins or ends a trial."""
        settling = 0.0 if self._settled else self._settling_seconds()
        settled = [one for one in self._window if one.at - self._window[0].at >= settling]
        if not settled or sample.at - settled[0].at < HOLD_SECONDS or not shows(self.limit, settled):
            return
        if (level := level_of(self.limit, settled)) is None:
            return
        self._window, self._settled = [sample], True
        self._noise.add(settled)
        usual = self._mean
        mean = self._mean = usual.with_look(level) if usual is not None else level
        always_waiting = min(one.waiting for one in settled)
        # Others may use the server too: only our share of the queue is ours to remove.
        ours = sample.in_flight / max(1.0, sample.in_flight, sample.running + sample.waiting)
        if (surplus := math.floor(ours * (always_waiting - spare(sample)))) >= 1:
            self._end_trial(sample.at, worth_it=False)
            least = 1 if ours > 0.5 else min(self.limit, FIRST_LIMIT)  # other clients would fill the gap
            self._set(sample.at, max(least, self.limit - surplus), f"{always_waiting:.0f} requests were always waiting")
        elif self._before is not None:
            self._judge(sample.at, self._before, mean)
        else:
            self._watch_pace(usual, level)
            if trial := self._due_trial(settled, always_waiting):
                self._before = self._mean
                self._set(sample.at, *trial)

    def _watch_pace(self, usual: Level | None, level: Level) -> None:
        """Makes a trial due if the pace has moved for two looks: of less if it is slower, of more if it is faster."""
        moved = usual is not None and not usual.pace / MOVED < level.pace < MOVED * usual.pace
        if usual is not None and moved and self._moved:
            self._mean, self._next_trial = level, 0.0
            self._less = math.floor(self.limit * max(0.5, usual.pace / level.pace))
        self._moved = moved and not self._moved

    def _due_trial(self, settled: list[Sample], always_waiting: float) -> tuple[int, str] | None:
        """A limit that may be better, and why; None if no trial is due."""
        first, last = settled[0], settled[-1]
        if last.at < self._next_trial:
            return None
        if last.preemptions - first.preemptions > PREEMPTED * (last.answered - first.answered):
            return math.floor(self.limit / LESS_MEMORY), "trial: the KV cache overflows, requests are preempted"
        if always_waiting >= 1:
            return None  # a short queue is right
        less, self._less = self._less, 0
        if 1 <= less < self.limit:
            return less, LESS_MAY_DO
        if last.kv_cache_usage < FULL_CACHE and self.limit < self._ceiling:
            return math.ceil(self.limit * self._ratio), "trial: no requests wait"
        return None

    def _judge(self, at: float, before: Level, level: Level) -> None:
        """Ends a trial and adopts the better limit; waits for another look before the smaller wins."""
        small, large = sorted((before, level), key=lambda one: one.limit)
        if small.limit == large.limit:
            share = doubt = 0.0
        else:
            share = worth(small, large)
            doubt = self._noise.error(small, large) if level is small else 0.0
        clear = CLEARLY if level is large else CLEARLY_WORSE
        undecided = level.looks < MOST_TRIAL_LOOKS and abs(share - WORTHWHILE) < doubt
        if share < clear and (level.looks < LOOKS or undecided):
            return
        better = large if share + doubt >= WORTHWHILE else small
        self._end_trial(at, worth_it=better is level)
        gain = 100 * (large.tokens_per_second / max(1e-9, small.tokens_per_second) - 1)
        why = f"{large.limit} gave {gain:+.0f} % tokens over {small.limit}"
        if better is large and share >= WORTHWHILE:
            self._climb_on(at, small, large, share, why, to_less=level is small)
            return
        if better is large:
            self._less = small.limit  # in doubt: compare them again later
        self._ratio = TRIAL if better is large else NEXT_TRIAL
        self._set(at, better.limit, why)
        self._mean = better

    def _climb_on(self, at: float, small: Level, large: Level, share: float, why: str, *, to_less: bool) -> None:
        """Tries more than the larger limit, whose extra requests were worth it; `to_less`: in a trial of less."""
        sharp_knee = knee(small, large, share)
        if to_less:
            self._ratio = min(TRIAL, max(1.0, 2 * sharp_knee / large.limit))
        else:
            self._less = 0 if share >= CLEARLY else math.ceil(ROOM * sharp_knee)
            self._ratio = min(2.0, 1 + share) if share >= CLEARLY else TRIAL
        self._before = large
        self._set(at, math.ceil(large.limit * self._ratio), why)

    def _end_trial(self, at: float, *, worth_it: bool) -> None:
        """Schedules the next trial: soon after a successful upward one, later after each failure."""
        if self._before is not None:
            shortest, longest = TRIAL_PAUSE_SECONDS
            if not worth_it:
                self._pause = min(longest, 2 * self._pause)
            elif self.limit >= self._before.limit:
                self._pause = shortest
            self._next_trial = at + self._pause
        self._before = None

    def _settling_seconds(self) -> float:
        """Half the lifetime of a request, by Little's law: the time a new limit takes to show."""
        first, last = self._window[0], self._window[-1]
        answered = last.answered - first.answered
        least, most = SETTLE_SECONDS
        if not answered:
            return most
        return min(most, max(least, 0.5 * last.in_flight * (last.at - first.at) / answered))

    def _set(self, at: float, limit: int, why: str) -> None:
        limit = max(1, min(limit, self._ceiling))
        if limit != self.limit:
            self.limit = limit
            self.changes.append(Change(at, limit, why))
        self._forget()

    def _forget(self) -> None:
        self._window, self._settled, self._mean, self._moved = [], False, None, False
