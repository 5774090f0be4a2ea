"""Finds out what listens on a port: nothing, some program, or a server and its models."""

import http.client
import json
import socket
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 5
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # local servers need no proxy


def served_models(url: str, api_key: str = "") -> list[str] | None:
    """Names of the models that the base URL serves; empty if it is not such a server; None if nothing answers.

    While a server loads it does not listen; if its engine died, /health returns an error.
    """
    try:
        root = url.removesuffix("/v1")
        with OPENER.open(f"{root}/health", timeout=TIMEOUT_SECONDS):
            pass
        request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {api_key}"})  # noqa: S310
        with OPENER.open(request, timeout=TIMEOUT_SECONDS) as response:
            return [str(model["id"]) for model in json.load(response)["data"]]
    except urllib.error.HTTPError as error:
        error.close()
        return []
    except (OSError, http.client.HTTPException):
        return None
    except (ValueError, LookupError, TypeError, RecursionError):
        return []


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


def port_is_taken_by(host: str, port: int, models: list[str] | None) -> str:
    """The message for a port in use, with a free one."""
    what = f"a server of {', '.join(models)}" if models else "another program, or a server that refuses the API key"
    return f"port {port} is in use by {what}: set port to a free one, such as {free_port_after(host, port)}"
