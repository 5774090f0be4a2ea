"""Work in a thread that nobody leaves behind: a cancellation waits for its end."""

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
    """The result of a function that writes, run in a thread. A cancellation is raised once the function has ended.

    `asyncio.to_thread` raises it at once. The caller then releases its lock while the thread still replaces files.
    `give_up` is called when it is cancelled, and may make the function end soon.
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
    """A context that is entered and left in a thread.

    When this is cancelled while it enters, `give_up` is called, which should make it return soon. What was entered is
    always left.
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
