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

    Raises TerminationSignal once all that was inside has been cleaned up; a second SIGTERM does not disturb that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    task, loop, arrived = asyncio.current_task(), asyncio.get_running_loop(), False
    assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def end() -> None:
        nonlocal arrived
        os.read(reading, 1 << 16)
        if not arrived:
            arrived = True
            task.cancel()

    loop.add_reader(reading, end)
    faulthandler.register(signal.SIGTERM, file=writing, all_threads=False)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGTERM)
        loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)
        if arrived:
            task.uncancel()
            raise TerminationSignal(signal.SIGTERM)
