"""The proxy that the environment sets for a server."""

import base64
import ipaddress
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.masking import PIECE


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy. `str` gives it without its password."""

    url: str
    secrets: tuple[str, ...]  # its password, as written and as sent
    variable: str  # that sets it

    @classmethod
    def read(cls, value: str, variable: str) -> Self:
        """Reads the value of an environment variable, which often has no scheme. Raises UsageError."""
        url = value if "://" in value else f"http://{value}"
        try:
            parts = urlsplit(url)
            scheme, host, _ = parts.scheme, parts.hostname, parts.port
        except ValueError:
            scheme, host = "", None
        if scheme not in ("http", "https") or not host:
            what = f"has a {scheme} proxy" if host else "is not a URL"  # the value may contain a password
            raise UsageError(
                f"the environment variable {variable} {what}: set it to http://HOST:PORT, or add the server's host to "
                "no_proxy"
            )
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        sent = base64.b64encode(f"{user}:{password}".encode()).decode()
        secrets = [parts.password, password]
        if not password and len(user) >= PIECE:  # some proxies take a token as the user
            secrets = [parts.username, user]
        return cls(url, tuple(secret for secret in (*secrets, user and sent) if secret), variable)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def proxy_of(url: str) -> Proxy | None:
    """The proxy that the environment sets for a URL; none for this machine."""
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    name = parts.scheme if proxies.get(parts.scheme) else "all"
    return Proxy.read(proxies[name], f"{name}_proxy") if proxies.get(name) else None


def is_loopback(url: str) -> bool:
    """Whether the URL points to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
