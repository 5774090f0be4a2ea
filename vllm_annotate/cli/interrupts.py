"""Ctrl-C, SIGTERM and SIGHUP of a command: the first stops it in good order, and more of them do not disturb that."""

import asyncio
import atexit
import os
import signal
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = (
    b"stopping: what was answered is being saved, and servers of this run are being stopped. Ctrl-C once more ends it "
    b"at once; that loses nothing either\n"
)


class Interrupts:
    """The signals of one command."""

    def __init__(self) -> None:
        self._count = 0
        self._exit_code: int | None = None  # of a command that is done, but for what Prefect has yet to record
        self._stop = _raise

    def install(self) -> None:
        """Handles the signals from now on; one that is ignored, as nohup does with SIGHUP, stays so."""
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            for number in handled:
                signal.signal(number, self._handle)
            # The first to be registered is the last to run: after it the interpreter would set handlers that kill.
            atexit.register(_ignore, handled)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns; a signal cancels it. Raises CancelledError then."""

        async def cancellable() -> Result:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
            with self._cancelling(task):
                return await work

        return asyncio.run(cancellable())

    @contextmanager
    def _cancelling(self, task: "asyncio.Task[Any]") -> Iterator[None]:
        """Cancels the task, instead of raising KeyboardInterrupt in whatever the event loop is at."""
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)

        self._stop = cancel
        if self._count:  # between the call that made the task and here
            task.cancel()
        try:
            yield
        finally:
            self._stop = _raise

    def done(self, exit_code: int) -> int:
        """Lets the next signal end the process with this exit code; returns it."""
        self._exit_code = exit_code
        return exit_code

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._count += 1
        if self._exit_code is not None:
            os._exit(self._exit_code)
        if self._count == 1:
            self._stop()
        elif self._count == 2 or number != signal.SIGINT:
            os.write(2, PATIENCE)  # print could be interrupted within itself
        else:
            os._exit(INTERRUPTED)


def _raise() -> None:
    raise KeyboardInterrupt


def _ignore(signals: Sequence[signal.Signals]) -> None:
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
