"""How a flow ended, known before Prefect has recorded it: an API that is gone would keep it for minutes."""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.states import Failed

from vllm_annotate.errors import ServerFault, UsageError
from vllm_annotate.storage.disk_errors import explained

RECORD_SECONDS = 30.0  # a slow API needs 20
SEND_SECONDS = 60.0


class Outcome:
    """The state with which a flow of this process ended, once there is one."""

    def __init__(self) -> None:
        self.state: State[Any] | None = None
        self._known = asyncio.Event()

    def set(self, state: State[Any]) -> None:
        """Sets the state; the last one counts."""
        self.state = state
        self._known.set()

    async def wait(self) -> None:
        """Waits until there is one."""
        await self._known.wait()


_OUTCOME: ContextVar[Outcome | None] = ContextVar("outcome", default=None)


def ended(state: State[Any]) -> State[Any]:
    """Returns a flow's last state, and tells `recorded`, if it waits for that flow."""
    if (outcome := _OUTCOME.get()) is not None:
        outcome.set(state)
    return state


def refused(error: UsageError | ServerFault | OSError, output: Path | str) -> State[Any]:
    """Logs why a flow cannot go on; returns its last state."""
    message = explained(error, output) if isinstance(error, OSError) else str(error)
    get_run_logger().error("%s", message)
    return ended(Failed(message=message))


async def recorded(flow: Coroutine[Any, Any, State[Any]]) -> tuple[State[Any], bool]:
    """Runs a flow; returns its last state, and whether Prefect recorded it in time.

    Raises what Prefect raises if the flow did not come to its end. Without a record the call may still be trying.
    """
    outcome = Outcome()
    _OUTCOME.set(outcome)
    running, waiting = asyncio.create_task(flow), asyncio.create_task(outcome.wait())
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({running}, timeout=RECORD_SECONDS)
    except asyncio.CancelledError:
        running.cancel()
        await asyncio.wait({running})
        raise
    finally:
        waiting.cancel()
    if outcome.state is None or (running.done() and not running.exception()):
        return running.result(), True
    return outcome.state, False


async def all_sent() -> bool:
    """Waits until Prefect's threads have sent all states and logs; returns whether they did so in time.

    Otherwise they wait at the end of the process: seconds for each state, thousands of them, if only the websocket of
    the events is blocked.
    """
    services: list[Any] = [EventsWorker, APILogWorker]
    drained = await asyncio.gather(*(service.drain_all(timeout=SEND_SECONDS) for service in services))
    return not any(pending for _, pending in filter(None, drained))
