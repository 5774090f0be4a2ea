"""Simulates continuous batching: slots, a queue, a KV cache, and step times that grow with the batch."""

import asyncio
import random
from collections import deque
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LONGEST_STEP_SECONDS, SHORTEST_STEP_SECONDS = 0.02, 0.001
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Timing:
    """Speed and limits of the simulated engine."""

    front_end_seconds: float = 0.0  # per request before it reaches the engine, one at a time
    slots: int = 64  # sequences that run at once (vLLM's --max-num-seqs)
    prefill_seconds: float = 0.01
    decode_seconds_per_token: float = 0.0002
    compute_slots: int = 1_000_000  # with more sequences, compute is the limit and each slows all others
    slowdown_per_running: float = 0.0  # every other sequence makes tokens slower by this share
    kv_cache_tokens: int = 500_000
    completion_tokens: int = 0  # mean length of an answer; 0 uses the length of its text
    completion_spread: float = 0.0  # lengths vary by up to this share of the mean


@dataclass(eq=False)
class Sequence:
    """A request in the engine."""

    prompt_tokens: int
    completion_tokens: int
    arrived: float
    finished: asyncio.Future[None]
    is_proof: bool
    to_prefill: float = 0.0  # seconds, without slowdown
    generated: float = 0.0  # tokens

    @property
    def tokens_held(self) -> float:
        return self.prompt_tokens + self.generated


class Engine:
    """Runs requests in simulated time and updates vLLM's metrics; token counters grow with every step, as in vLLM."""

    def __init__(self, timing: Timing, model: str) -> None:
        self.timing = timing
        self.most_at_once = 0  # running and waiting, without those of a proof, since the start
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._loop: asyncio.Task[None] | None = None
        self._front_end = asyncio.Lock()
        self._lengths = random.Random(5)
        self.registry = CollectorRegistry()
        labels = {"model_name": model, "engine": "0"}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, list(labels), registry=self.registry).labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, list(labels), registry=self.registry).labels(**labels)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"vllm:{name}", text, list(labels), registry=self.registry).labels(**labels)

        gauge("num_requests_running", "Requests in the batch.").set_function(lambda: len(self._running))
        gauge("num_requests_waiting", "Requests in the queue.").set_function(lambda: len(self._waiting))
        gauge("kv_cache_usage_perc", "Share of the KV cache in use.").set_function(self._kv_cache_usage)
        self.preemptions = counter("num_preemptions", "Requests put back into the queue.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens read.")
        self.generation_tokens = counter("generation_tokens", "Tokens written.")
        self.queue_seconds = histogram("request_queue_time_seconds", "Seconds in the queue.")
        self.latency_seconds = histogram("e2e_request_latency_seconds", "Seconds from arrival to answer.")
        self._finished = Counter(
            "vllm:request_success", "Finished requests.", [*labels, "finished_reason"], registry=self.registry
        )
        self._labels = labels
        # Sum and count of a histogram; prometheus_client's would need an observation per token.
        self._gap_seconds = gauge("inter_token_latency_seconds_sum", "Seconds between two tokens of an answer.")
        self._gaps = gauge("inter_token_latency_seconds_count", "Gaps between two tokens of an answer.")
        cache = {"block_size": str(BLOCK_TOKENS), "num_gpu_blocks": str(timing.kv_cache_tokens // BLOCK_TOKENS)}
        Gauge("vllm:cache_config_info", "Settings.", list(cache), registry=self.registry).labels(**cache).set(1)

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return len(self._running) + len(self._waiting)

    async def generate(
        self, prompt_tokens: int, completion_tokens: int, most: int | None = None, *, is_proof: bool = False
    ) -> int:
        """Waits until the tokens are generated, at most `most`; returns their number."""
        if self.timing.front_end_seconds:
            async with self._front_end:
                await asyncio.sleep(self.timing.front_end_seconds)
        length = self._length(completion_tokens)
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sequence = Sequence(prompt_tokens, min(length, most or length), _now(), finished, is_proof)
        self._waiting.append(sequence)
        at_once = sum(not other.is_proof for other in (*self._running, *self._waiting))
        self.most_at_once = max(self.most_at_once, at_once)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        await sequence.finished
        self.latency_seconds.observe(_now() - sequence.arrived)
        return sequence.completion_tokens

    def finished(self, reason: str) -> None:
        """Counts a finished request."""
        self._finished.labels(**self._labels, finished_reason=reason).inc()

    def metrics(self) -> bytes:
        """The text of /metrics."""
        return generate_latest(self.registry)

    def _length(self, of_text: int) -> int:
        mean, spread = self.timing.completion_tokens or of_text, self.timing.completion_spread
        return max(1, round(mean * self._lengths.uniform(1 - spread, 1 + spread)))

    def _tokens_held(self) -> float:
        return sum(sequence.tokens_held for sequence in self._running)

    def _kv_cache_usage(self) -> float:
        return min(1.0, self._tokens_held() / self.timing.kv_cache_tokens)

    async def _run(self) -> None:
        while self._running or self._waiting:
            self._admit()
            running, timing = len(self._running), self.timing
            crowding = max(1.0, running / timing.compute_slots) * (1 + timing.slowdown_per_running * (running - 1))
            started = _now()
            await asyncio.sleep(self._step_seconds(crowding))
            tokens = self._advance((_now() - started) / crowding)
            self.generation_tokens.inc(tokens)
            self._gaps.inc(tokens)
            self._gap_seconds.inc(tokens * self.timing.decode_seconds_per_token * crowding)
            self._preempt()

    def _admit(self) -> None:
        held = self._tokens_held()
        while self._waiting and len(self._running) < self.timing.slots:
            sequence = self._waiting[0]
            if self._running and held + sequence.tokens_held > self.timing.kv_cache_tokens:
                return
            held += sequence.tokens_held
            self._running.append(self._waiting.popleft())
            # A preempted sequence has lost its cache: prefill covers its generated tokens too.
            sequence.to_prefill = self.timing.prefill_seconds * sequence.tokens_held / max(1, sequence.prompt_tokens)
            if not sequence.generated:
                self.queue_seconds.observe(_now() - sequence.arrived)

    def _step_seconds(self, crowding: float) -> float:
        """Time until the first sequence finishes, bounded to keep the metrics fresh."""
        per_token = self.timing.decode_seconds_per_token
        left = (s.to_prefill + (s.completion_tokens - s.generated) * per_token for s in self._running)
        return min(LONGEST_STEP_SECONDS, max(SHORTEST_STEP_SECONDS, min(left) * crowding))

    def _advance(self, work: float) -> float:
        """Does this many seconds of work on every sequence; returns the tokens generated."""
        written = 0.0
        for sequence in list(self._running):
            prefill = min(sequence.to_prefill, work)
            sequence.to_prefill -= prefill
            if sequence.to_prefill > 0:
                continue
            if prefill and not sequence.generated:
                self.prompt_tokens.inc(sequence.prompt_tokens)
            open_tokens = sequence.completion_tokens - sequence.generated
            tokens = min(open_tokens, (work - prefill) / max(1e-9, self.timing.decode_seconds_per_token))
            sequence.generated += tokens
            written += tokens
            if tokens >= open_tokens:
                self._running.remove(sequence)
                if not sequence.finished.done():
                    sequence.finished.set_result(None)
        return written

    def _preempt(self) -> None:
        """Moves the newest sequences back to the head of the queue while the cache is too small for all."""
        while len(self._running) > 1 and self._tokens_held() > self.timing.kv_cache_tokens:
            self._waiting.appendleft(self._running.pop())
            self.preemptions.inc()


def _now() -> float:
    """The event loop's clock, which tests can speed up."""
    return asyncio.get_running_loop().time()
