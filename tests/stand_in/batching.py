"""Continuous batching in simulation: slots, a queue, prefill and decode times."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


@dataclass(frozen=True)
class Timing:
    """How fast the simulated engine is."""

    slots: int = 64  # sequences that run at once (vLLM's --max-num-seqs)
    prefill_seconds: float = 0.01
    decode_seconds_per_token: float = 0.0002
    slowdown_per_running: float = 0.0  # each sequence beside a request makes its tokens this share slower
    kv_cache_tokens: int = 500_000


class Engine:
    """Runs requests in simulated time and keeps vLLM's metrics of them."""

    def __init__(self, timing: Timing, model: str) -> None:
        self.timing = timing
        self.running = self.waiting = self.tokens_held = 0
        self.most_at_once = 0  # running and waiting, since the start
        self._slots = asyncio.Semaphore(timing.slots)
        self.registry = CollectorRegistry()
        labels = {"model_name": model, "engine": "0"}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, list(labels), registry=self.registry).labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, list(labels), registry=self.registry).labels(**labels)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"vllm:{name}", text, list(labels), registry=self.registry).labels(**labels)

        gauge("num_requests_running", "Requests in the batch.").set_function(lambda: self.running)
        gauge("num_requests_waiting", "Requests in the queue.").set_function(lambda: self.waiting)
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

    def _kv_cache_usage(self) -> float:
        return min(1.0, self.tokens_held / self.timing.kv_cache_tokens)

    @asynccontextmanager
    async def generating(self, prompt_tokens: int, completion_tokens: int) -> AsyncIterator[None]:
        """Queues for a slot and holds it for as long as prefill and decode take; the body runs once they are over."""
        arrived = time.monotonic()
        self.waiting += 1
        self.most_at_once = max(self.most_at_once, self.running + self.waiting)
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.queue_seconds.observe(time.monotonic() - arrived)
        self.running += 1
        self.tokens_held += prompt_tokens + completion_tokens
        try:
            crowded = 1 + self.timing.slowdown_per_running * (self.running - 1)
            decode = completion_tokens * self.timing.decode_seconds_per_token * crowded
            await asyncio.sleep(self.timing.prefill_seconds + decode)
            yield
        finally:
            self.running -= 1
            self.tokens_held -= prompt_tokens + completion_tokens
            self._slots.release()
        self.prompt_tokens.inc(prompt_tokens)
        self.generation_tokens.inc(completion_tokens)
        self.latency_seconds.observe(time.monotonic() - arrived)

    def finished(self, reason: str) -> None:
        """Counts a finished request."""
        self._finished.labels(**self._labels, finished_reason=reason).inc()

    def metrics(self) -> bytes:
        """The text of /metrics."""
        return generate_latest(self.registry)
