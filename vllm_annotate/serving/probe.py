"""What is on a port: nobody, some program, or a server of which models."""

import http.client
import json
import socket
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 5
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # servers of one's own are behind no proxy


def served_models(url: str, api_key: str = "") -> list[str] | None:
    """Names of the models that the base URL serves; empty when it is no such server; None when nothing answers.

    A server that is still loading does not listen yet; one whose engine has died answers /health with an error.
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
    """Whether a server could not listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def free_port_after(host: str, port: int) -> int | None:
    """The next port that is free."""
    return next((one for one in range(port + 1, min(port + 100, 65_536)) if not port_is_taken(host, one)), None)


def port_is_taken_by(host: str, port: int, models: list[str] | None) -> str:
    """In words, what is on a taken port, given what it serves, and which port to take instead."""
    what = f"a server of {', '.join(models)}" if models else "another program, or a server that refuses our key"
    return f"port {port} is taken by {what}: set port to a free one, such as {free_port_after(host, port)}"
