"""The environment of a temporary Prefect server and of the process that uses it: nothing of yours can break them."""

import os
from collections.abc import Mapping
from pathlib import Path

import httpx
from prefect.context import refresh_global_settings_context
from prefect.settings import Settings

from flows.support.loopback import LOOPBACK, spare_loopback
from vllm_annotate.errors import UsageError

QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
# Of the files in which Prefect finds settings (profiles.toml, prefect.toml, pyproject.toml, .env), the environment
# overrides all; what it does not name must not come from a profile that was made for another server.
OF_A_CLIENT = {
    "PREFECT_API_AUTH_STRING": "",
    "PREFECT_API_KEY": "",
    "PREFECT_CLIENT_CUSTOM_HEADERS": "{}",
}


def users_home() -> Path:
    """The user's PREFECT_HOME."""
    return Path(Settings().home).expanduser().absolute()


def database_settings() -> dict[str, str]:
    """The user's settings for Prefect's database, wherever they are: your history stays in it."""
    return Settings().server.database.to_environment_variables(exclude_unset=True)


def server_settings(home: Path, port: int, settings: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of the server, beside those of the user."""
    of_home = {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "no-profiles.toml")}
    # Without these the UI calls port 4200, whatever --port says.
    address = {"PREFECT_SERVER_API_HOST": LOOPBACK[0], "PREFECT_SERVER_API_PORT": str(port)}
    return QUIET | of_home | address | dict(settings)


def use_server(api_url: str, home: Path) -> None:
    """Makes Prefect in this process use the server."""
    for name in list(os.environ):
        if name.startswith("PREFECT_") and not name.startswith("PREFECT_LOGGING_"):
            del os.environ[name]
    of_home = {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "no-profiles.toml")}
    os.environ.update(QUIET | OF_A_CLIENT | of_home | {"PREFECT_API_URL": api_url})
    spare_loopback()
    refresh_global_settings_context()


def check_proxies() -> None:
    """Raises UsageError if Prefect's HTTP client cannot even be made: it reads the proxies of the environment."""
    try:
        httpx.Client().close()
    except (ImportError, ValueError) as error:
        found = ", ".join(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy"))
        # The error has the URL, and with it the password.
        why = "SOCKS needs the package socksio" if isinstance(error, ImportError) else "use http:// or https://"
        raise UsageError(
            f"Prefect's HTTP client cannot use the proxy of {found}: {why}. Correct the variable, or unset it for "
            "this command"
        ) from None
