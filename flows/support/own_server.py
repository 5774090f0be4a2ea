"""Gives a process that has no Prefect server a temporary one."""

from collections.abc import Callable

from flows.support.prefect_environment import check_proxies, use_server
from flows.support.prefect_server import TemporaryPrefectServer
from flows.support.server_process import ServerProcess
from vllm_annotate.errors import UsageError
from vllm_annotate.threads import run_to_end


def start_own_server(process: ServerProcess | None = None) -> TemporaryPrefectServer:
    """Starts a temporary server in the background, and makes Prefect in this process use it. Raises UsageError."""
    check_proxies()
    server = TemporaryPrefectServer(process=process)
    use_server(server.api_url, server.home.path)
    return server


async def until_ready(server: TemporaryPrefectServer, warn: Callable[[str], None]) -> None:
    """Waits for a temporary server; warns if its database is not the user's. Raises UsageError."""
    if server.is_ready:
        return
    try:
        await run_to_end(server.wait_until_ready, give_up=server.given_up.set)
    except RuntimeError as error:
        raise UsageError(str(error)) from None
    use_server(server.api_url, server.home.path)
    if server.home.note:
        warn(server.home.note)
