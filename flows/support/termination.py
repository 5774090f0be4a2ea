"""SIGTERM ends a run between two steps of its event loop, and never within one."""

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
    """Cancels the task that is inside when SIGTERM arrives; it leaves with the exception Prefect knows it by.

    Prefect raises TerminationSignal out of whatever the main thread executes. In a busy event loop that is mostly a
    callback, where asyncio logs the exception and goes on, or one image's task: a run that is cancelled at full speed
    would fail, or not notice and be killed half a minute later, and leave its server behind.

    Prefect's handler has to stay, for a run that does not have it counts as crashed when it is cancelled. So the signal
    is caught beneath it, in C, where `faulthandler` writes to a pipe that the event loop reads. What it writes does not
    matter. Outside the main thread, where Prefect does not handle the signal either, nothing is done.

    Raises TerminationSignal once all that was inside has been cleaned up; a second SIGTERM disturbs neither that nor
    what Prefect does then, until it sets the handler of before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    task, loop, arrived = asyncio.current_task(), asyncio.get_running_loop(), False
    assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
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
    faulthandler.unregister(signal.SIGTERM)  # of a run of this process that was ended before
    faulthandler.register(signal.SIGTERM, file=writing, all_threads=False)
    try:
        yield
    finally:
        loop.remove_reader(reading)
        if arrived:
            # It stays registered, and the pipe open: another signal would raise in the midst of Prefect's own cleanup.
            task.uncancel()
            raise TerminationSignal(signal.SIGTERM)
        faulthandler.unregister(signal.SIGTERM)
        os.close(reading)
        os.close(writing)
