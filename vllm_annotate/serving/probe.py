"""Finds out what listens on a port: nothing, some program, or a server and its models."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from vllm_annotate.inference.transport import REQUEST_ERRORS, Connections
from vllm_annotate.storage.json_text import loads
from vllm_annotate.storage.masking import masked

TIMEOUT_SECONDS = 5


def served_models(url: str, api_key: str = "") -> list[str] | None:
    """Names of the models that the base URL serves; empty if it is not such a server; None if nothing answers.

    While a server loads it does not listen; if its engine died, /health returns an error.
    """
    with ThreadPoolExecutor(1) as thread:  # the caller's may have an event loop
        return thread.submit(asyncio.run, _served_models(url, api_key)).result()


async def _served_models(url: str, api_key: str) -> list[str] | None:
    async with Connections(url, api_key, proxied=False) as connections:  # a server of this machine
        try:
            for path in (f"{url.removesuffix('/v1')}/health", f"{url}/models"):
                response = await connections.send("GET", path, timeout_seconds=TIMEOUT_SECONDS)
                if response.status != 200:
                    return []
            return [str(model["id"]) for model in loads(response.body)["data"]]
        except (ValueError, LookupError, TypeError):
            return []
        except REQUEST_ERRORS:
            return None


def port_is_taken(host: str, port: int) -> bool:
    """Whether the port is in use."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def free_port_after(host: str, port: int) -> int | None:
    """The next free port."""
    return next((one for one in range(port + 1, min(port + 100, 65_536)) if not port_is_taken(host, one)), None)


def port_is_taken_by(host: str, port: int, models: list[str] | None, api_key: str) -> str:
    """The message for a port in use, with a free one."""
    what = (
        f"a server of {masked(', '.join(models or ()), [api_key]):.500}"
        if models
        else "another program, or a server that refuses the API key"
    )
    return f"port {port} is in use by {what}: set port to a free one, such as {free_port_after(host, port)}"
