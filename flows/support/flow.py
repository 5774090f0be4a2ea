"""The decorator of this project's flows: Prefect's, for runs that also work where no Prefect server is configured."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import prefect
from prefect.settings import get_current_settings

from flows.support.own_server import start_own_server, until_ready
from vllm_annotate.storage.state_folder import state_folder

# Of parameters without a default that come after one that has: callers may count on their order. Prefect shows them as
# required, and refuses a run without them.
REQUIRED: Any = ...

P = ParamSpec("P")
R = TypeVar("R")


class Flow(prefect.Flow[P, R]):
    """A flow that starts a temporary Prefect server if its process has none.

    Prefect's own ephemeral server locks its database under a run, prints that as tracebacks, and stops before the last
    task runs are recorded.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the flow, as Prefect does; a coroutine if its function is one."""
        call = super().__call__
        if get_current_settings().api.url:
            return call(*args, **kwargs)

        async def run() -> Any:
            await until_ready(start_own_server(), logging.getLogger("vllm_annotate").warning)
            return await call(*args, **kwargs)

        return run()


def flow(
    **settings: Any,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], prefect.Flow[P, Coroutine[Any, Any, R]]]:
    """Makes an async function a flow: `prefect.flow`, with nothing persisted and whatever storage is the default."""
    # Prefect looks for the default storage even so, and fails if its block is elsewhere.
    fixed: dict[str, Any] = {"persist_result": False, "result_storage": state_folder() / "prefect-results"}

    def make(function: Callable[P, Coroutine[Any, Any, R]]) -> prefect.Flow[P, Coroutine[Any, Any, R]]:
        return Flow(function, **(fixed | settings))

    return make
