"""Manages one server: finds or starts it, restarts it when it dies, stops it with the last run that uses it."""

import asyncio
import atexit
import os
import shlex
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from vllm_annotate.errors import ServerUnavailable, UsageError
from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.inference.pool import Pool
from vllm_annotate.serving import guardian
from vllm_annotate.serving.command import is_as_good
from vllm_annotate.serving.listeners import is_a_strangers, stranger_behind, users_behind
from vllm_annotate.serving.log_causes import Cause, cause_of, last_line
from vllm_annotate.serving.preflight import Replica
from vllm_annotate.serving.probe import port_is_taken, port_is_taken_by, served_models
from vllm_annotate.serving.record import ServerRecord, Users, read_record, record_path
from vllm_annotate.serving.waiting import alone_in_starting, until_stopped
from vllm_annotate.storage.masking import masked
from vllm_annotate.threads import run_to_end

POLL_SECONDS = 0.5
RECORD_SECONDS = 10  # for a guardian to write its record
# Referenced while they live: a Popen that is collected earlier warns, and a server may outlive this process.
_STARTED: "list[subprocess.Popen[bytes]]" = []
NEWS_SECONDS = 30  # between two messages about a server that is still loading
UNRESPONSIVE_SECONDS = 120  # a server that does not answer for this long is killed
RECOVERED_SECONDS = 600  # after this long without a death, the count of restarts starts over
LONGEST_BACKOFF_SECONDS = 60


class ServerDied(ServerUnavailable):
    """The server exited or did not start; the message says why."""


class Keeper:
    """Manages one replica while a run uses it."""

    def __init__(self, replica: Replica, log_folder: Path, say: Callable[[str], None]) -> None:
        self.replica = replica
        self.starts = 0  # by this run
        self._log_folder = log_folder
        self._secrets = [replica.api_key, *replica.launch.secret_values()]
        self._tell = say
        self._record_path = record_path(replica.port)
        self._users = Users(self._record_path)
        self._guardian: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None  # of the current server

    def _say(self, message: str) -> None:
        self._tell(masked(message, self._secrets))

    async def open(self) -> None:
        """Finds or starts the server and waits until it answers. Raises ServerDied or UsageError with the remedy."""
        read_record(self._record_path, self._say)
        await until_stopped(self._users.try_share, self._record_path, self.replica.url, self._say)
        async with self._alone_in_starting():
            await self._find_or_start()

    async def close(self) -> None:
        """Stops the server, unless another run uses it, somebody else started it, or `keep` is set."""
        with self._users:
            record = await self._record()
            if record is None:
                return
            if record.keep:
                self._say(f"{self.replica.url} stays up because keep is set; stop it with: kill {record.pid}")
            elif self._users.try_alone():
                await run_to_end(record.end)
                _reap()
                self._say(f"stopped the server at {self.replica.url}")
            else:
                self._say(f"{self.replica.url} stays up because another run uses it")

    async def watch(self, endpoint: Endpoint, pool: Pool) -> None:
        """Restarts the server when it dies while requests wait; gives up after max_restarts."""
        deaths, started, was_well = 0, time.monotonic(), True
        try:
            while True:
                await asyncio.sleep(POLL_SECONDS)
                if endpoint.up.is_set() or not await self._is_dead(endpoint.down_since):
                    was_well = was_well or endpoint.up.is_set()
                    continue
                deaths = 1 if time.monotonic() - started > RECOVERED_SECONDS else deaths + 1
                cause = self._cause()
                if cause.is_memory and was_well:  # while it loads, fewer requests would not help
                    pool.reduce(endpoint, f"the server ran out of memory ({cause.summary})")
                if deaths > self.replica.launch.max_restarts:
                    pool.lose(endpoint, f"the server died {deaths} times; last cause: {cause}")
                    return
                await self._restart(cause, deaths)
                started, was_well = time.monotonic(), False
        except UsageError as error:
            pool.lose(endpoint, str(error))
        except Exception as error:
            pool.lose(endpoint, f"the server is no longer restarted because of {error!r}")
            raise

    async def _is_dead(self, down_since: float) -> bool:
        """Whether the server is gone, or has not answered for too long."""
        if await self._served_models():
            return False
        record = read_record(self._record_path)
        lives = (record is not None and record.is_alive) or self._port_is_taken()
        return not lives or time.monotonic() - down_since > UNRESPONSIVE_SECONDS

    async def _restart(self, cause: Cause, number: int) -> None:
        dead = read_record(self._record_path)
        self._say(f"{self.replica.url} died; restarting it (restart {number}); cause: {cause}")
        await asyncio.sleep(min(LONGEST_BACKOFF_SECONDS, 2 ** (number - 1)))
        try:
            async with self._alone_in_starting():
                # Kill what hangs or left processes behind, but not a server that another run has started meanwhile.
                if dead is not None and read_record(self._record_path) == dead and not await self._served_models():
                    await run_to_end(dead.end)
                await self._find_or_start()
        except (ServerUnavailable, UsageError, OSError) as error:
            self._say(f"{self.replica.url} did not restart: {error}")

    async def _find_or_start(self) -> None:
        replica, record, models = self.replica, read_record(self._record_path), await self._served_models()
        same = record is None or is_as_good(record.command, replica.command)
        if models and replica.model in models and same:
            whose = "an earlier run left running" if record is not None else "was started by somebody else"
            if record is None and not users_behind(replica.url):
                whose += " (which user cannot be seen from here)"
            self._log = record.log if record is not None else None
            self._say(f"using the server at {replica.url}, which {whose}")
        elif record is not None and record.is_alive and same and models is None:
            self._log = record.log
            self._say(
                f"waiting for the server at {replica.url}, which an earlier run started (process {record.pid}; "
                f"log: {record.log})"
            )
            await self._wait_until_healthy(record.log, lambda: record.is_alive)
        else:
            if record is not None:
                await self._make_room(record)
            if self._port_is_taken():
                raise UsageError(port_is_taken_by(replica.launch.host, replica.port, models, replica.api_key))
            await self._start()

    async def _make_room(self, record: ServerRecord) -> None:
        """Stops a server with other settings that an earlier run left. Raises UsageError if it is still in use."""
        port = self.replica.port
        if record.keep and record.is_alive:
            raise UsageError(
                f"port {port} has a server with other settings and keep (process {record.pid}): set another port, or "
                f"stop it with: kill {record.pid}"
            )
        if not self._users.try_alone():
            raise UsageError(f"port {port} has a server with other settings that another run uses: set another port")
        self._say(f"stopping the server with other settings that an earlier run left on port {port}")
        await run_to_end(record.end)
        self._users.try_share()

    async def _start(self) -> None:
        replica = self.replica
        self._log_folder.mkdir(parents=True, exist_ok=True)
        log = self._log = self._log_folder / f"vllm-{replica.port}-{time.strftime('%Y%m%d-%H%M%S')}.log"
        self._say(f"starting {shlex.join(replica.command)}; log: {log}")
        linger = "keep" if replica.launch.keep else str(replica.launch.linger_seconds)
        log.touch(mode=0o600)  # vLLM and its libraries may write what they were given
        with log.open("ab") as output:
            # Polled, like servers of other runs, and may outlive this event loop.
            process = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, guardian.__file__, str(self._record_path), str(self._users.path), str(log), linger,
                 *replica.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | replica.environment,
                start_new_session=True,  # a process group of its own, which outlives the run's
            )  # fmt: skip
        self.starts += 1
        _reap()
        _reap_at_exit()
        _STARTED.append(process)
        self._guardian = process
        await self._wait_until_healthy(log, lambda: process.poll() is None)

    async def _wait_until_healthy(self, log: Path, is_alive: Callable[[], bool]) -> None:
        started = news = time.monotonic()
        patience = self.replica.launch.start_timeout_seconds
        while not await self._served_models():
            now = time.monotonic()
            if not is_alive() or now - started > patience:
                if (record := await self._record()) is not None and record.log == log:
                    await run_to_end(record.end)
                what = "exited during startup" if now - started <= patience else f"was not ready after {patience:g} s"
                raise ServerDied(f"the server at {self.replica.url} {what}: {self._cause_in(log)}; log: {log}")
            if now - news > NEWS_SECONDS:
                self._say(f"{self.replica.url} has been loading for {now - started:.0f} s: {last_line(log)}")
                news = now
            await asyncio.sleep(POLL_SECONDS)
        self._say(f"{self.replica.url} is ready after {time.monotonic() - started:.0f} s")

    async def _record(self) -> ServerRecord | None:
        """The record of the server; waits for that of one just started."""
        deadline = time.monotonic() + RECORD_SECONDS
        while (record := read_record(self._record_path)) is None and time.monotonic() < deadline:
            if self._guardian is None or self._guardian.poll() is not None:
                break
            await asyncio.sleep(0.05)
        return record

    async def _served_models(self) -> list[str] | None:
        """What the server serves. Raises UsageError if it is another user's, before it gets the key."""
        if stranger := await asyncio.to_thread(stranger_behind, self.replica.url):
            raise UsageError(is_a_strangers(self.replica.url, stranger))
        return await asyncio.to_thread(served_models, self.replica.url, self.replica.api_key)

    def _port_is_taken(self) -> bool:
        return port_is_taken(self.replica.launch.host, self.replica.port)

    def _cause(self) -> Cause:
        """Why the server died, from its log."""
        record = read_record(self._record_path)
        log = record.log if record is not None else self._log
        return self._cause_in(log) if log is not None else Cause("", "unknown, as somebody else started it")

    def _cause_in(self, log: Path) -> Cause:
        cause = cause_of(log)
        return replace(cause, line=masked(cause.line, self._secrets))

    def _alone_in_starting(self) -> AbstractAsyncContextManager[None]:
        patience = self.replica.launch.start_timeout_seconds
        return alone_in_starting(self._record_path, self.replica.url, patience, self._say)


@asynccontextmanager
async def kept_servers(
    replicas: Sequence[Replica], log_folder: Path, say: Callable[[str], None]
) -> AsyncIterator[list[Keeper]]:
    """Opens all servers and closes them with the context."""
    keepers = [Keeper(replica, log_folder, say) for replica in replicas]
    try:
        try:
            async with asyncio.TaskGroup() as group:
                for keeper in keepers:
                    group.create_task(keeper.open())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        yield keepers
    finally:
        await asyncio.gather(*(keeper.close() for keeper in keepers))


@asynccontextmanager
async def watching(keepers: Sequence[Keeper], pool: Pool) -> AsyncIterator[None]:
    """Watches and restarts the servers of a pool until the context ends."""
    endpoints = {endpoint.url: endpoint for endpoint in pool.endpoints}
    for keeper in keepers:
        endpoints[keeper.replica.url].kept = True
    watches = [asyncio.create_task(keeper.watch(endpoints[keeper.replica.url], pool)) for keeper in keepers]
    try:
        yield
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)  # `watch` reports its errors to the pool


@cache
def _reap_at_exit() -> None:
    """Or Python would complain of those that were ended from elsewhere, such as by stop-server."""
    atexit.register(_reap)


def _reap() -> None:
    """Forgets the guardians that have exited."""
    _STARTED[:] = [process for process in _STARTED if process.poll() is None]
