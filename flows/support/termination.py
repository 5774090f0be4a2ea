"""Makes SIGTERM stop a run between two steps of its event loop, never within one."""

import asyncio
import faulthandler
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.exceptions import TerminationSignal


@asynccontextmanager
async def ended_by_sigterm() -> AsyncIterator[None]:
    """Cancels the current task when SIGTERM arrives, then raises the exception that Prefect expects.

    Prefect raises TerminationSignal in whatever the main thread executes. In a busy event loop that is mostly a
    callback, where asyncio logs the exception and continues, or the task of one image. A run that is cancelled at full
    speed would fail, or not notice, be killed 30 seconds later and leave its server behind.

    Prefect's handler must stay: without it, a cancelled run counts as crashed. So the signal is caught below it, in C:
    `faulthandler` writes something to a pipe that the event loop reads. Does nothing outside the main thread, where
    Prefect does not handle the signal either.

    Raises TerminationSignal after the cleanup; further SIGTERMs disturb neither that nor Prefect's own cleanup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    task, loop, arrived = asyncio.current_task(), asyncio.get_running_loop(), False
    assert task is not None  # noqa: S101 - for the type checker
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)

    def cancel() -> None:
        nonlocal arrived
        os.read(reading, 1 << 16)
        if not arrived:
            arrived = True
            task.cancel()

    loop.add_reader(reading, cancel)
    faulthandler.unregister(signal.SIGTERM)  # of an earlier run in this process
    faulthandler.register(signal.SIGTERM, file=writing, all_threads=False)
    try:
        yield
    finally:
        loop.remove_reader(reading)
        if arrived:
            # Stays registered with an open pipe: another signal would raise during Prefect's own cleanup.
            task.uncancel()
            raise TerminationSignal(signal.SIGTERM)
        faulthandler.unregister(signal.SIGTERM)
        os.close(reading)
        os.close(writing)
