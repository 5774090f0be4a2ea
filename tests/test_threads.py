"""Threads that a cancellation waits for."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vllm_annotate.threads import in_thread, run_to_end


class Writer:
    """Writes until it may end, or is asked to give up."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.ended = threading.Event(), threading.Event(), threading.Event()

    def write(self) -> str:
        self.begun.set()
        assert self.may_end.wait(10)
        self.ended.set()
        return "written"


async def begun(task: "asyncio.Task[object]", writer: Writer) -> None:
    while not writer.begun.is_set():
        await asyncio.sleep(0.01)
        assert not task.done()


async def test_a_cancellation_is_raised_after_the_thread_ends() -> None:
    writer = Writer()
    task = asyncio.create_task(run_to_end(writer.write))
    await begun(task, writer)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done(), "no lock is released yet"
    writer.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert writer.ended.is_set()


async def test_an_exception_in_the_thread_is_raised_in_the_caller() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await run_to_end(int, "x")
    assert await run_to_end(int, "7") == 7


async def test_cancelling_calls_give_up() -> None:
    writer = Writer()
    task = asyncio.create_task(run_to_end(writer.write, give_up=writer.may_end.set))
    await begun(task, writer)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert writer.ended.is_set()


def test_closing_the_event_loop_waits_too() -> None:
    writer = Writer()

    async def run() -> None:
        task = asyncio.create_task(run_to_end(writer.write))
        await begun(task, writer)
        threading.Timer(0.2, writer.may_end.set).start()  # and all tasks are cancelled

    asyncio.run(run())
    assert writer.ended.is_set()


async def test_a_context_that_was_entered_during_a_cancellation_is_exited() -> None:
    writer, did = Writer(), list[str]()

    @contextmanager
    def lease() -> Iterator[str]:
        did.append(writer.write())
        try:
            yield "lease"
        finally:
            did.append("left")

    async def use() -> None:
        async with in_thread(lease()):
            did.append("used")

    task = asyncio.create_task(use())
    await begun(task, writer)
    task.cancel()
    await asyncio.sleep(0.02)
    writer.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert did == ["written", "left"]
