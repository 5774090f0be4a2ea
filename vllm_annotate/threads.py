"""Threads that a cancellation waits for."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")


def _nothing() -> None:
    pass


async def run_to_end(function: Callable[..., Result], *arguments: Any, give_up: Callable[[], Any] = _nothing) -> Result:
    """Runs a function in a thread and returns its result. A cancellation is raised only after the function returns.

    `asyncio.to_thread` raises it at once: the caller would release its lock while the thread still replaces files.
    On cancellation, `give_up` is called; it may make the function return early.
    """
    context = contextvars.copy_context()
    # A plain future: a task would be cancelled with all others when the event loop closes.
    ending = asyncio.get_running_loop().run_in_executor(None, partial(context.run, function, *arguments))
    cancelled = False
    while not ending.done():
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError:
            cancelled = True
            give_up()
    if cancelled:
        raise asyncio.CancelledError from ending.exception()
    return ending.result()


@asynccontextmanager
async def in_thread(
    context: AbstractContextManager[Result], give_up: Callable[[], Any] = _nothing
) -> AsyncIterator[Result]:
    """Enters and exits a context manager in a thread.

    If it is cancelled while it enters, `give_up` is called, which should make it return early. A context that was
    entered is always exited.
    """
    entered = False

    def enter() -> Result:
        nonlocal entered
        value = context.__enter__()
        entered = True
        return value

    try:
        yield await run_to_end(enter, give_up=give_up)
    finally:
        if entered:
            await run_to_end(context.__exit__, None, None, None)
