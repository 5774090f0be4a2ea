"""Secrets in the parameters of a run, which Prefect stores and shows as they were given."""

import httpx
from prefect import get_run_logger, runtime
from prefect.client.orchestration import get_client

from blocks import VLLMServer


async def hide_secrets(server: VLLMServer | None) -> None:
    """Takes the secrets of a server that is not a saved block out of this run's parameters, and warns.

    The run itself goes on with them. A retry of it takes them from the worker's environment. Without a deployment there
    is nothing to do: Prefect masks the parameters of a flow that is called.
    """
    if server is None or server._block_document_id is not None or runtime.deployment.id is None:
        return
    if not (secrets := server.secrets()):
        return
    try:
        async with get_client() as client:
            run = await client.read_flow_run(runtime.flow_run.id)
            await client.update_flow_run(run.id, parameters=run.parameters | {"server": server.without_secrets()})
        now = "they are taken out now"
    except httpx.HTTPError as error:
        now = f"they could not be taken out ({type(error).__name__})"
    get_run_logger().warning(
        "Prefect showed secrets among this run's parameters (server: %s); %s. Change them, save the server as a block "
        "and choose that, and remove them from the deployment's own parameters if they stand there",
        ", ".join(secrets),
        now,
    )
