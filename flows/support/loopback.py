"""Keeps proxies away from loopback."""

import os

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def spare_loopback() -> None:
    """Makes this process reach loopback without a proxy: no proxy could."""
    for name in ("no_proxy", "NO_PROXY"):  # the lowercase one wins where there are both
        others = os.environ.get(name) or os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
        if others.strip() != "*":
            listed = others.split(",")
            os.environ[name] = ",".join(filter(None, [*listed, *(each for each in LOOPBACK if each not in listed)]))
