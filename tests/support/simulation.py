"""An event loop whose clock does not wait, and an engine with a client in it: minutes of a run in a second."""

import asyncio
import itertools
import math
import random
import selectors
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from stand_in.batching import Engine, Timing
from vllm_annotate.inference.concurrency import ConcurrencyController
from vllm_annotate.inference.metrics import MetricsCheck, ServerMetrics, read_metrics
from vllm_annotate.inference.samples import Sample


class _Jump(selectors.DefaultSelector):
    """Instead of waiting for a timeout, adds it to the clock."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout:
            self.skipped += timeout
        return events


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Time passes only in sleeps, and at once."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.skipped


def simulate(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine in simulated time."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)


class Client:
    """Holds as many requests in flight as its limit says, against an engine of its own."""

    TURNAROUND_SECONDS = 0.01  # from an answer to the next request
    FEED_SECONDS = 0.0005  # to make a request

    def __init__(self, timing: Timing, limit: int | ConcurrencyController, *, with_metrics: bool = True) -> None:
        self.engine = Engine(timing, "simulated")
        self.in_flight = self.most_in_flight = self.answered = 0
        self._limit = limit
        self._with_metrics = with_metrics
        self._request_seconds = 0.0
        self._tokens = 0
        self._room = asyncio.Event()

    async def run(self, seconds: float) -> int:
        """Returns the number of answers."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._feed())]
            if isinstance(self._limit, ConcurrencyController):
                tasks.append(group.create_task(self._steer(self._limit)))
            await asyncio.sleep(seconds)
            for task in tasks:
                task.cancel()
        return self.answered

    async def _feed(self) -> None:
        requests: set[asyncio.Task[None]] = set()
        try:
            while True:
                while self.in_flight >= (self._limit if isinstance(self._limit, int) else self._limit.limit):
                    self._room.clear()
                    await self._room.wait()
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                task = asyncio.create_task(self._ask())
                requests.add(task)
                task.add_done_callback(requests.discard)
                await asyncio.sleep(self.FEED_SECONDS)
        finally:
            for task in requests:
                task.cancel()

    async def _ask(self) -> None:
        sent = asyncio.get_running_loop().time()
        tokens = await self._next_engine().generate(1000, 100)
        self._tokens += tokens  # only now: others have been answered meanwhile
        await asyncio.sleep(self.TURNAROUND_SECONDS)
        self._request_seconds += asyncio.get_running_loop().time() - sent
        self.in_flight -= 1
        self.answered += 1
        self._room.set()

    def _next_engine(self) -> Engine:
        return self.engine

    async def _steer(self, controller: ConcurrencyController) -> None:
        while True:
            await asyncio.sleep(controller.poll_seconds)
            controller.update(self._sample(asyncio.get_running_loop().time()))
            self._room.set()

    def _sample(self, at: float) -> Sample:
        metrics = read_metrics(self.engine.metrics()) if self._with_metrics else None
        return self._seen(at, metrics)

    def _seen(self, at: float, metrics: ServerMetrics | None) -> Sample:
        flying, answered = self.in_flight, self.answered
        if metrics is None:
            tokens, seconds = self._tokens, self._request_seconds
            return Sample(at, flying, answered, flying, 0, tokens, seconds, answered, by_requests=True)
        return Sample(
            at, flying, answered, metrics.running, metrics.waiting, metrics.generation_tokens,
            metrics.token_gap_seconds, metrics.token_gaps, metrics.kv_cache_usage, metrics.preemptions,
        )  # fmt: skip


class BalancedClient(Client):
    """The same, with several engines behind one address: requests and looks at the metrics go to each in turn."""

    def __init__(
        self, timing: Timing, replicas: int, limit: int | ConcurrencyController, *, with_metrics: bool = True
    ) -> None:
        super().__init__(timing, limit, with_metrics=with_metrics)
        engines = [Engine(timing, "simulated") for _ in range(replicas)]
        self._turns, self._looks = itertools.cycle(engines), itertools.cycle(engines)
        self._check = MetricsCheck()

    def _next_engine(self) -> Engine:
        return next(self._turns)

    def _sample(self, at: float) -> Sample:
        check = self._check
        if not check.is_due(at):
            return self._seen(at, None)
        metrics = read_metrics(next(self._looks).metrics()) if self._with_metrics else None
        check.add(at, metrics, answered=self.answered, tokens=self._tokens, in_flight=self.in_flight, troubles=0)
        if check.fault:
            assert isinstance(self._limit, ConcurrencyController)
            self._limit.restart(at, check.fault)
        return self._seen(at, None if check.fault else metrics)


class BusyClient(Client):
    """The same, on a machine with other work: the engine's speed swings, by a quarter in the standard deviation."""

    SWING_SECONDS = 0.5

    def __init__(self, timing: Timing, limit: int | ConcurrencyController, seed: int) -> None:
        super().__init__(timing, limit)
        self._rng = random.Random(seed)

    async def run(self, seconds: float) -> int:
        swinging = asyncio.create_task(self._swing(self.engine.timing))
        try:
            return await super().run(seconds)
        finally:
            swinging.cancel()

    async def _swing(self, usual: Timing) -> None:
        log = 0.0
        while True:
            log = 0.7 * log + self._rng.gauss(0, 0.18)  # slow seconds come together
            slower = math.exp(log)
            self.engine.timing = replace(
                usual,
                front_end_seconds=slower * usual.front_end_seconds,
                prefill_seconds=slower * usual.prefill_seconds,
                decode_seconds_per_token=slower * usual.decode_seconds_per_token,
            )
            await asyncio.sleep(self.SWING_SECONDS)
