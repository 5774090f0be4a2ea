"""Samples GPUs, servers and the client every second of a run, and writes the samples as Parquet."""

import asyncio
import platform
import resource
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from urllib.parse import urlsplit

import polars as pl

from vllm_annotate.cores import usable_cores
from vllm_annotate.inference.endpoint import Endpoint, EndpointSample
from vllm_annotate.inference.proxies import is_loopback
from vllm_annotate.pipeline.session import Run
from vllm_annotate.pipeline.work import Work
from vllm_annotate.telemetry.bottleneck import Bottleneck, RunSample
from vllm_annotate.telemetry.history import History
from vllm_annotate.telemetry.nvml import GpuReading, GpuWatch, WhichGpus
from vllm_annotate.telemetry.sample_log import Recorded, SampleLog
from vllm_annotate.threads import run_to_end

SAMPLE_SECONDS = 1.0
LOOKING_SHARE = 0.02  # of the time: rendering metrics delays requests in a busy front end
LONGEST_PAUSE_SECONDS = 2.0  # even after the slowest look, the next arrives before the last is stale
STALE_SECONDS = 8.0  # older metrics do not count; a busy server takes seconds to answer
Values = dict[str, float | None]


class Telemetry(Recorded):
    """The telemetry of a running job."""

    def __init__(self, run: Run, work: Work, warn: Callable[[str], None]) -> None:
        super().__init__(histories={}, samples=0)
        self.bottleneck = Bottleneck()
        self.started = time.monotonic()
        self.seconds = 0.0  # of annotating: up to the last sample; in the end, in total
        self._taken_at = self.started
        self._run = run
        self._work = work
        self._warn = warn
        self._notes_logged = 0  # of the GPUs
        self._cores = usable_cores()
        self._log = SampleLog(run.workspace.telemetry)
        self._write_failed = False
        self._gpus = GpuWatch(which_gpus(run))
        self._servers = [ServerRates(endpoint) for endpoint in run.annotator.pool.endpoints]
        self._client = ClientRates(run)

    @property
    def notes(self) -> list[str]:
        """What could not be measured, and why."""
        return [*self._gpus.notes, *(rates.note for rates in self._servers if rates.note and self.samples)]

    async def record(self) -> None:
        """Samples until cancelled."""
        self._gpus.start()
        due = time.monotonic()
        try:
            while True:
                due += SAMPLE_SECONDS
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                late = time.monotonic() - due
                self.take(late)
                if late > SAMPLE_SECONDS:
                    due = time.monotonic()
                if self._log.is_due:
                    await self._write()
        finally:
            await self._close()

    async def poll(self, endpoint: Endpoint) -> None:
        """Refreshes the endpoint's `last_look`; with a controller, the pool does that."""
        while endpoint.controller is None:
            started = time.monotonic()
            if endpoint.up.is_set():
                await endpoint.look()
            await asyncio.sleep(pause_after(time.monotonic() - started))

    def take(self, late: float) -> None:
        """Takes one sample of everything, without waiting."""
        self.samples += 1
        now = self._taken_at = time.monotonic()
        self.seconds = now - self.started
        readings = self._gpus.readings
        gpus: dict[str, Values] = {
            f"{index} {self._gpus.names[index]}": asdict(reading) for index, reading in readings.items()
        }
        servers = {rates.endpoint.url: rates.take(now) for rates in self._servers}
        client = self._client.take(now, self._work.rows) | {"lag_seconds": late}
        self.bottleneck.add(self._look(readings, client))
        rows: dict[tuple[str, str], Values] = {("client", platform.node()): client}
        rows |= {("server", url): values for url, values in servers.items()}
        rows |= {("gpu", name): values for name, values in gpus.items()}
        for key, values in rows.items():
            self.histories.setdefault(key, History()).add(self.seconds, values)
        self._log.add(datetime.now(UTC), rows)
        for note in self._gpus.notes[self._notes_logged :]:
            self._warn(note)
            self._notes_logged += 1

    def _look(self, readings: Mapping[int, GpuReading], client: Values) -> RunSample:
        preparation, pool = self._run.annotator.preparation, self._run.annotator.pool
        up = [endpoint for endpoint in pool.endpoints if endpoint.up.is_set()]
        seen = [(rates, rates.last) for rates in self._servers if rates.last is not None]
        everything = bool(seen) and len(seen) == len(up)
        metrics = [look.metrics for _, look in seen]
        busy = [reading.utilisation for reading in readings.values() if reading.utilisation is not None]
        # A GPU whose server is down, or that may not be a server's, must not lower the mean.
        of_all = len(up) == len(pool.endpoints) and not self._gpus.guessed
        controllers = [endpoint.controller for endpoint in up if endpoint.controller is not None]
        return RunSample(
            endpoints=len(pool.endpoints),
            up=len(up),
            in_flight=sum(look.in_flight for _, look in seen) if everything else pool.in_flight,
            limit=pool.limit,
            ready=pool.queued,
            preparing=preparation.preparing,
            resting=max(0, preparation.held - preparation.preparing - pool.queued - pool.in_flight),
            unasked=client["unasked"] or 0,
            client_cores=client["cpu_cores"] or 0,
            machine_cores=self._cores,
            prepare_seconds=client["prepare_seconds"],
            lag_seconds=client["lag_seconds"] or 0,
            running=sum(one.running for one in metrics) if everything else None,
            waiting=sum(one.waiting for one in metrics) if everything else None,
            kv_cache_usage=max(one.kv_cache_usage for one in metrics) if everything else None,
            preemptions_per_second=sum(rates.preemptions for rates, _ in seen) if everything else None,
            gpu_utilisation=None if not busy else sum(busy) / len(busy) if of_all else max(busy),
            automatic=bool(controllers),
            climbing=any(controller.is_climbing for controller in controllers),
        )

    async def _write(self) -> None:
        try:
            await run_to_end(self._log.write)
        except (OSError, pl.exceptions.PolarsError) as error:  # never fails the run
            if not self._write_failed:
                self._warn(f"cannot write samples to {self._run.workspace.telemetry} for now: {error!s:.200}")
            self._write_failed = True

    async def _close(self) -> None:
        if time.monotonic() - self._taken_at > SAMPLE_SECONDS / 4:  # rates over a shorter time are noise
            self.take(0.0)
        await run_to_end(self._gpus.stop)
        await self._write()


class ServerRates:
    """Turns the counters of one server into rates and latencies."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.last: EndpointSample | None = None  # None if stale
        self.preemptions = 0.0  # per second
        self._was_up = self._was_seen = False

    @property
    def note(self) -> str:
        """What cannot be measured; empty if nothing is missing."""
        if fault := self.endpoint.metrics_fault:
            return f"{self.endpoint.url}: its metrics are not used: {fault}"
        if self._was_seen:
            return ""
        what = "has no /metrics of vLLM: its requests and tokens are not measured" if self._was_up else "never answered"
        return f"{self.endpoint.url} {what}"

    def take(self, now: float) -> Values:
        """The current values."""
        endpoint, before, look = self.endpoint, self.last, self.endpoint.last_look
        values: Values = {
            "up": float(endpoint.up.is_set()), "in_flight": endpoint.in_flight, "limit": endpoint.limit,
        }  # fmt: skip
        self._was_up = self._was_up or endpoint.up.is_set()
        if look is None or now - look.at > STALE_SECONDS or not endpoint.up.is_set():
            self.last, self.preemptions = None, 0.0
            return values
        self.last, self._was_seen = look, True
        metrics = look.metrics
        values |= {"running": metrics.running, "waiting": metrics.waiting, "kv_cache_usage": metrics.kv_cache_usage}
        if before is None or look.at <= before.at or metrics.went_back(before.metrics):
            return values  # the first look, the same look, or the first after a restart
        seconds, earlier = look.at - before.at, before.metrics
        self.preemptions = (metrics.preemptions - earlier.preemptions) / seconds
        values |= {
            "preemptions_per_second": self.preemptions,
            "prompt_tokens_per_second": (metrics.prompt_tokens - earlier.prompt_tokens) / seconds,
            "generation_tokens_per_second": (metrics.generation_tokens - earlier.generation_tokens) / seconds,
        }
        if (finished := metrics.finished - earlier.finished) > 0:
            values["queue_seconds"] = (metrics.queue_seconds - earlier.queue_seconds) / finished
            values["latency_seconds"] = (metrics.latency_seconds - earlier.latency_seconds) / finished
        return values


class ClientRates:
    """Turns the counters of this process into rates."""

    def __init__(self, run: Run) -> None:
        self._annotator = run.annotator
        self._before = self._counters(time.monotonic())

    def take(self, now: float, rows: int) -> Values:
        """The rates since the last call; `rows` is the size of the plan."""
        annotator, before = self._annotator, self._before
        at, cpu, prepared, prepare_seconds, answered, failed = self._before = self._counters(now)
        seconds = max(1e-3, at - before[0])
        images = prepared - before[2]
        return {
            "in_flight": annotator.in_flight,
            "limit": annotator.pool.limit,
            "ready": annotator.pool.queued,
            "unasked": max(0, rows - annotator.tally.done - annotator.preparation.held),
            "images_per_second": (answered - before[4]) / seconds,
            "failures_per_second": (failed - before[5]) / seconds,
            "prepare_seconds": (prepare_seconds - before[3]) / images if images else None,
            "cpu_cores": (cpu - before[1]) / seconds,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def _counters(self, now: float) -> tuple[float, float, int, float, int, int]:
        tally, preparation = self._annotator.tally, self._annotator.preparation
        return now, time.process_time(), preparation.prepared, preparation.seconds, tally.answered, tally.failed


def which_gpus(run: Run) -> WhichGpus:
    """What is known about the GPUs that the run's servers use."""
    urls = [endpoint.url for endpoint in run.annotator.pool.endpoints]
    given = (keeper.replica.environment.get("CUDA_VISIBLE_DEVICES", "") for keeper in run.keepers)
    ours = {keeper.replica.url for keeper in run.keepers}  # even if they listen on all interfaces
    here = [url for url in urls if is_loopback(url) or url in ours or urlsplit(url).hostname == platform.node().lower()]
    return WhichGpus(
        ports=[urlsplit(url).port or (443 if url.startswith("https") else 80) for url in here],
        indices=[int(index) for devices in given for index in devices.split(",") if index.strip().isdigit()],
        remote=[url for url in urls if url not in here],
    )


def pause_after(looking_seconds: float) -> float:
    """Seconds to wait before the next look at a server, given the duration of the last."""
    return min(max(SAMPLE_SECONDS, looking_seconds / LOOKING_SHARE), LONGEST_PAUSE_SECONDS)


@asynccontextmanager
async def recording(run: Run, work: Work, warn: Callable[[str], None]) -> AsyncIterator[Telemetry]:
    """Records telemetry of a run until the context ends. Its errors never stop the run."""
    telemetry = Telemetry(run, work, warn)
    tasks = [asyncio.create_task(telemetry.record())]
    tasks += [asyncio.create_task(telemetry.poll(endpoint)) for endpoint in run.annotator.pool.endpoints]
    try:
        yield telemetry
    finally:
        telemetry.seconds = time.monotonic() - telemetry.started
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                warn(f"telemetry failed with {outcome!r}: please report this")
