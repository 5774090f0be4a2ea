"""Flows for a resident vLLM that many runs use."""

import asyncio
import platform
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks import VLLMServer
from flows.support.flow import flow
from flows.support.shown_secrets import hide_secrets
from vllm_annotate.errors import ServerFault, UsageError
from vllm_annotate.serving.keeper import kept_servers
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.preflight import preflight
from vllm_annotate.serving.record import Users, read_record, record_path
from vllm_annotate.storage.state_folder import state_folder
from vllm_annotate.version import VERSION


def serve_run_name() -> str:
    """Names a run after model and machine."""
    return f"serve {_model_of(runtime.flow_run.parameters)} on {platform.node()}"


def stop_run_name() -> str:
    """Names a run after model and machine."""
    return f"stop {_model_of(runtime.flow_run.parameters)} on {platform.node()}"


def _model_of(parameters: dict[str, Any]) -> str:
    server = parameters["server"]
    return server.expected_model() or "vLLM" if isinstance(server, VLLMServer) else "vLLM"


@flow(name="serve", flow_run_name=serve_run_name, version=VERSION)
async def serve(server: VLLMServer) -> State[Any]:
    """Starts vLLM on the machine that runs this flow and leaves it running.

    Runs with the same server block use it and leave it running too; stop-server stops it.

    Args:
        server: The server block; its Start says how to start vLLM.

    """
    logger = get_run_logger()
    await hide_secrets(server)
    try:
        launch = _start_of(server).model_copy(update={"keep": True})
        found = await asyncio.to_thread(preflight, launch, server.model, server.own_key())
        found.check()
        for note in found.notes:
            logger.info("%s", note)
        folder = Path(launch.log_folder).expanduser() if launch.log_folder else state_folder() / "logs"
        async with kept_servers(found.replicas, folder.resolve(), logger.info):
            pass
    except (UsageError, ServerFault) as error:
        logger.error("%s", error)  # noqa: TRY400 - the traceback adds nothing
        return Failed(message=str(error))
    return Completed(message=f"vLLM runs at {', '.join(launch.urls())}")


@flow(name="stop-server", flow_run_name=stop_run_name, version=VERSION)
async def stop_server(server: VLLMServer, even_if_used: bool = False) -> State[Any]:
    """Stops the vLLM that `serve` or a run has started on the machine that runs this flow.

    Args:
        server: The server block that vLLM was started with.
        even_if_used: Stop it even while runs use it; these wait for a server, or restart it.

    """
    await hide_secrets(server)
    try:
        ports = _start_of(server).ports()
        messages = [await asyncio.to_thread(_stop, port, even_if_used=even_if_used) for port in ports]
    except UsageError as error:
        get_run_logger().error("%s", error)
        return Failed(message=str(error))
    return Completed(message="; ".join(messages))


def _start_of(server: VLLMServer) -> Launch:
    if server.start is None:
        raise UsageError("the server block has no Start: choose the block that the server was started with")
    return server.start


def _stop(port: int, *, even_if_used: bool) -> str:
    """Stops the server on a port; returns a message. Raises UsageError if a run uses it."""
    record = read_record(record_path(port))
    if record is None:
        return f"no server that vllm-annotate started runs on port {port}"
    with Users(record_path(port)) as users:
        if not (users.try_alone() or even_if_used):
            raise UsageError(
                f"a run uses the server on port {port} (process {record.pid}): wait for the run, cancel it, or set "
                "even_if_used"
            )
        record.end()
    return f"stopped the server on port {port}"
