"""What is on a port: nobody, some program, or a server of which models."""

import json
import socket
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 5


def served_models(url: str, api_key: str = "") -> list[str] | None:
    """Names of the models that the base URL serves; empty when it is no such server; None when nothing answers.

    A server that is still loading does not listen yet; one whose engine has died answers /health with an error.
    """
    try:
        root = url.removesuffix("/v1")
        with urllib.request.urlopen(f"{root}/health", timeout=TIMEOUT_SECONDS):  # noqa: S310 - http, by our own making
            pass
        request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {api_key}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            return [str(model["id"]) for model in json.load(response)["data"]]
    except urllib.error.HTTPError as error:
        error.close()
        return []
    except OSError:
        return None
    except (ValueError, LookupError, TypeError):
        return []


def port_is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def free_port_after(host: str, port: int) -> int | None:
    """The next port that is free."""
    return next((one for one in range(port + 1, min(port + 100, 65_536)) if not port_is_taken(host, one)), None)
