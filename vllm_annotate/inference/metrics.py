"""Parses the numbers that matter from vLLM's /metrics, and tells whether they are the whole endpoint's."""

import re
from collections import deque
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

# vLLM's name → ours. Older versions have other names for two of them.
NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:gpu_cache_usage_perc": "kv_cache_usage",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:inter_token_latency_seconds_sum": "token_gap_seconds",
    "vllm:inter_token_latency_seconds_count": "token_gaps",
    "vllm:time_per_output_token_seconds_sum": "token_gap_seconds",
    "vllm:time_per_output_token_seconds_count": "token_gaps",
    "vllm:request_queue_time_seconds_sum": "queue_seconds",
    "vllm:e2e_request_latency_seconds_sum": "latency_seconds",
    "vllm:e2e_request_latency_seconds_count": "finished",
}

# Without these there is nothing to steer by: a router may count requests but no tokens.
REQUIRED = {"running", "waiting", "generation_tokens", "token_gap_seconds", "token_gaps"}
COUNTERS = (
    "preemptions", "prompt_tokens", "generation_tokens", "token_gap_seconds", "token_gaps", "queue_seconds",
    "latency_seconds", "finished",
)  # fmt: skip
LARGEST = 1e15  # value that makes sense
NAME_END = re.compile(rb"[{\s]")

FEWEST_ANSWERS = 16  # of a comparison
# Of our tokens that the server must have counted. Others may use it too, so it may be more. It may be a quarter less,
# as those in flight at the beginning have tokens from before; one of two servers counts at most 0.63.
LEAST_SHARE = 0.7
SHORT_COMPARISONS = 2
# This often within this time, counters go back for another reason than restarts. A restart also loses the requests in
# flight; one that loses none, as of a server that a gateway replaces, is rare.
SETBACKS, SETBACK_SECONDS = 3, 600
MISSES = 20  # looks without metrics, after which the server has none
MISSING_SECONDS = 10  # between two looks from then on; a look that gets no answer takes seconds


@dataclass(frozen=True)
class ServerMetrics:
    """One look at a server; sums over its engines, except for the KV cache: that of the fullest."""

    running: float
    waiting: float
    kv_cache_usage: float = 0.0  # 0 to 1
    preemptions: float = 0.0  # this and the following: since the server's start
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    token_gap_seconds: float = 0.0  # over all gaps between two tokens of an answer
    token_gaps: float = 0.0
    queue_seconds: float = 0.0  # spent by requests in the engine's queue
    latency_seconds: float = 0.0  # of requests, from arrival to finish
    finished: float = 0.0  # requests

    def went_back(self, before: "ServerMetrics") -> bool:
        """Whether a counter is lower than before: the server restarted, or this is another one."""
        return any(getattr(self, name) < getattr(before, name) for name in COUNTERS)


def read_metrics(text: bytes) -> ServerMetrics | None:
    """Parses a Prometheus exposition; None if it is not that of vLLM's engines, or makes no sense."""
    # vLLM exposes a thousand lines and the parser is slow: pass only the dozen that matter.
    wanted = [line for line in text.splitlines() if NAME_END.split(line, 1)[0].decode("ascii", "replace") in NAMES]
    values: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(b"\n".join(wanted).decode() + "\n"):
            for sample in family.samples:
                name = NAMES[sample.name]
                before = values.get(name, 0.0)
                values[name] = max(before, sample.value) if name == "kv_cache_usage" else before + sample.value
    except (ValueError, KeyError):
        return None
    if not values.keys() >= REQUIRED or not all(0 <= value <= LARGEST for value in values.values()):  # NaN is neither
        return None
    return ServerMetrics(**values)


class MetricsCheck:
    """Tells whether metrics show all that an endpoint does.

    Behind a load balancer, each look may be at another server, or always at one of several.
    """

    def __init__(self) -> None:
        self.fault = ""  # what is wrong with them, once it is certain
        self.are_missing = False
        self._misses = 0
        self._looked_at = 0.0  # seconds
        self._last: ServerMetrics | None = None
        self._troubles = 0
        self._setbacks: deque[float] = deque(maxlen=SETBACKS)
        self._short = 0
        self._since: tuple[ServerMetrics, int, int] | None = None  # where the current comparison begins
        self._enough = FEWEST_ANSWERS  # answers

    def is_due(self, at: float) -> bool:
        """Whether another look is worth its time."""
        return not self.fault and (not self.are_missing or at - self._looked_at >= MISSING_SECONDS)

    def add(
        self, at: float, metrics: ServerMetrics | None, *, answered: int, tokens: int, in_flight: int, troubles: int
    ) -> None:
        """Takes a look into account, with our own counts of answers, of their tokens, and of failed attempts.

        `at` is in seconds.
        """
        self._looked_at = at
        if metrics is None:
            self._misses += 1
            self.are_missing = self._last is None or self._misses >= MISSES
            return
        self._misses, self.are_missing = 0, False
        last, self._last = self._last, metrics
        lost, self._troubles = troubles > self._troubles, troubles
        if last is not None and metrics.went_back(last):
            self._since = None
            if in_flight and not lost:
                self._setbacks.append(at)
            if len(self._setbacks) == SETBACKS and at - self._setbacks[0] < SETBACK_SECONDS:
                self.fault = "its counters keep going back, as if each look were at another server"
        if self._since is None:
            self._since = metrics, answered, tokens
            self._enough = max(FEWEST_ANSWERS, 4 * in_flight)  # those in flight have tokens from before
        elif answered - self._since[1] >= self._enough:
            self._compare(metrics, answered, tokens)

    def _compare(self, metrics: ServerMetrics, answered: int, tokens: int) -> None:
        assert self._since is not None  # noqa: S101 - for the type checker
        before, answered_before, tokens_before = self._since
        self._since = None
        if ours := tokens - tokens_before:
            share = (metrics.generation_tokens - before.generation_tokens) / ours
        else:  # the server does not report usage
            share = (metrics.finished - before.finished) / (answered - answered_before)
        if metrics.token_gaps == before.token_gaps:  # the pace that the limit follows
            share = 0.0
        self._short = self._short + 1 if share < LEAST_SHARE else 0
        if self._short >= SHORT_COMPARISONS:
            self.fault = f"it counts {share:.0%} of the tokens of this run, as if it were one server of several"
