import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.exceptions import TerminationSignal

from flows.support.termination import ended_by_sigterm


def interrupt(*_: object) -> None:
    """Handles a signal as Prefect does."""
    raise TerminationSignal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def prefects_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


def end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def wait(did: list[str], cleanup_seconds: float = 0.0) -> None:
    try:
        await asyncio.sleep(20)
    finally:
        did.append("began to clean up")
        await asyncio.sleep(cleanup_seconds)
        did.append("cleaned up")


def test_without_it_a_signal_within_a_callback_is_lost() -> None:
    errors: list[object] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
        loop.call_soon(end_this_process)
        await asyncio.sleep(0.1)

    asyncio.run(run())
    assert [type(error) for error in errors] == [TerminationSignal]


def test_a_signal_within_a_callback_ends_the_task_after_its_cleanup() -> None:
    did: list[str] = []

    async def run() -> None:
        async with ended_by_sigterm():
            assert signal.getsignal(signal.SIGTERM) is interrupt, "Prefect checks for its handler"
            asyncio.get_running_loop().call_soon(end_this_process)
            await wait(did)

    with pytest.raises(TerminationSignal):
        asyncio.run(run())
    assert did == ["began to clean up", "cleaned up"]


def test_a_signal_within_a_task_does_not_touch_that_task() -> None:
    did: list[str] = []

    async def end_and_go_on() -> None:
        end_this_process()
        did.append("went on")

    async def run() -> None:
        async with ended_by_sigterm(), asyncio.TaskGroup() as group:
            group.create_task(end_and_go_on())
            await wait(did)

    with pytest.raises(TerminationSignal):
        asyncio.run(run())
    assert did == ["went on", "began to clean up", "cleaned up"]


def test_a_second_signal_does_not_disturb_the_cleanup() -> None:
    did: list[str] = []

    async def run() -> None:
        async with ended_by_sigterm():
            for seconds in (0.01, 0.05):
                asyncio.get_running_loop().call_later(seconds, end_this_process)
            await wait(did, cleanup_seconds=0.2)

    with pytest.raises(TerminationSignal):
        asyncio.run(run())
    assert did == ["began to clean up", "cleaned up"]


def test_an_error_in_the_cleanup_still_ends_it_as_terminated() -> None:
    async def run() -> None:
        async with ended_by_sigterm():
            try:
                end_this_process()
                await asyncio.sleep(20)
            finally:
                raise OSError("the disk is full")

    with pytest.raises(TerminationSignal) as raised:
        asyncio.run(run())
    assert isinstance(raised.value.__context__, OSError)


def test_another_cancellation_stays_a_cancellation() -> None:
    async def run() -> None:
        async with ended_by_sigterm():
            await asyncio.sleep(20)

    async def cancel() -> None:
        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


def test_afterwards_the_handler_is_called_again() -> None:
    async def run() -> None:
        async with ended_by_sigterm():
            pass
        end_this_process()

    files = open_files()
    with pytest.raises(TerminationSignal):
        asyncio.run(run())
    assert open_files() == files


def test_in_another_thread_it_leaves_the_signal_alone() -> None:
    async def run() -> None:
        async with ended_by_sigterm():
            entered.set()
            await asyncio.to_thread(left.wait)

    entered, left = threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert entered.wait(10)
        with pytest.raises(TerminationSignal):
            end_this_process()
    finally:
        left.set()
        thread.join(10)
