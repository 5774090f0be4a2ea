"""Waits for other runs: says for what, ever more rarely, and not without end."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from vllm_annotate.errors import ServerUnavailable
from vllm_annotate.serving.guardian import TERMINATE_SECONDS
from vllm_annotate.serving.record import read_record
from vllm_annotate.storage.lock import AlreadyLockedError, locked

POLL_SECONDS = 0.5
NEWS_SECONDS = 10  # until a message is repeated; doubles each time
GRACE_SECONDS = 30  # beyond what others allow themselves
GIVES_UP = re.compile(r"gives up after (\d+) s")


async def until(
    is_done: Callable[[], bool], what: Callable[[], str], seconds: float, say: Callable[[str], None]
) -> None:
    """Waits until `is_done`. Raises ServerUnavailable after `seconds`."""
    started, news, pause = time.monotonic(), 0.0, NEWS_SECONDS
    while not is_done():
        waited = time.monotonic() - started
        if waited > seconds:
            raise ServerUnavailable(f"waited {seconds:.0f} s for {what()}: end that process, or set another port")
        if waited >= news:
            say(f"waiting for {what()}" + (f", for {waited:.0f} s so far" if news else ""))
            news += pause
            pause *= 2
        await asyncio.sleep(POLL_SECONDS)


async def until_stopped(is_done: Callable[[], bool], record: Path, url: str, say: Callable[[str], None]) -> None:
    """Waits while the guardian of a server stops it, because the last run has left it."""
    await until(is_done, lambda: f"the server at {url} to stop{_whose(record)}", TERMINATE_SECONDS + GRACE_SECONDS, say)


@asynccontextmanager
async def alone_in_starting(
    record: Path, url: str, start_timeout_seconds: float, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Prevents other runs from starting a server on this port at the same time.

    Waits for one that does, as long as it allows itself; the kernel releases the lock of one that dies.
    """
    path, holder = record.with_suffix(".starting"), ""
    with ExitStack() as held:

        def is_ours() -> bool:
            nonlocal holder
            try:
                held.enter_context(locked(path))
            except AlreadyLockedError as error:
                holder = ", ".join(str(error).split("\n"))
                return False
            return True

        if not is_ours():
            theirs = GIVES_UP.search(holder)
            seconds = float(theirs[1]) if theirs else start_timeout_seconds
            what = lambda: f"another run ({holder}) that is starting {url}{_whose(record)}"  # noqa: E731
            await until(is_ours, what, seconds + GRACE_SECONDS, say)
        with path.open("a") as file:
            file.write(f"gives up after {start_timeout_seconds:.0f} s\n")
        yield


def _whose(record: Path) -> str:
    server = read_record(record)
    return f" (process {server.pid}; log: {server.log})" if server is not None else ""
