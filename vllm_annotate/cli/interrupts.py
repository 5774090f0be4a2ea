"""Handles Ctrl-C, SIGTERM and SIGHUP: the first stops the command cleanly, and more do not disturb that."""

import asyncio
import atexit
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = (
    b"stopping: saving answers and stopping this run's servers. Press Ctrl-C again to exit at once; no saved answer "
    b"is lost\n"
)


class Interrupts:
    """The signal handlers of one command."""

    def __init__(self) -> None:
        self._count = 0
        self._installed = False
        self._exit_code: int | None = None  # of a command that is done while Prefect still records
        self._stop = _raise

    def install(self) -> None:
        """Installs the handlers; ignored signals stay ignored (nohup ignores SIGHUP)."""
        self._installed = True
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            for number in handled:
                signal.signal(number, self._handle)
            # Registered first, it runs last: after it, the interpreter restores handlers that kill.
            atexit.register(_ignore, handled)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` and returns its result. A signal cancels it; then raises CancelledError."""

        async def cancellable() -> Result:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - for the type checker
            with self._cancelling(task):
                return await work

        return asyncio.run(cancellable())

    @contextmanager
    def _cancelling(self, task: "asyncio.Task[Any]") -> Iterator[None]:
        """Makes signals cancel the task, instead of raising KeyboardInterrupt anywhere in the event loop."""
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)

        self._stop = cancel
        if self._count:  # a signal came before this handler
            task.cancel()
        try:
            yield
        finally:
            self._stop = _raise

    def done(self, exit_code: int) -> int:
        """Makes the next signal exit with this code; returns the code."""
        self._exit_code = exit_code
        return exit_code

    def leave(self, exit_code: int) -> None:
        """Ends the process at once, if it is the command's own: Prefect's threads would wait for a server that is gone.

        All that a run writes must be on disk.
        """
        if self._installed:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_code)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._count += 1
        if self._exit_code is not None:
            os._exit(self._exit_code)
        if self._count == 1:
            self._stop()
        elif self._count == 2 or number != signal.SIGINT:
            os.write(2, PATIENCE)  # print is not reentrant
        else:
            os._exit(INTERRUPTED)


def _raise() -> None:
    raise KeyboardInterrupt


def _ignore(signals: Sequence[signal.Signals]) -> None:
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
