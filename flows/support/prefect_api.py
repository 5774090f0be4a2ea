"""Asks the Prefect API of PREFECT_API_URL one question before anything starts, and says what is wrong with it."""

import asyncio
import ssl
from typing import Any

import httpx
from prefect.client.base import ServerType
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings

from flows.support.loopback import spare_loopback
from flows.support.prefect_environment import check_proxies
from vllm_annotate.errors import UsageError
from vllm_annotate.inference.proxies import proxy_of

ANSWER_SECONDS = 60
RETRIES = 2  # 6 s in all, if the server is busy


async def check_api() -> None:
    """Raises UsageError if the Prefect API of the settings cannot record a run."""
    api = get_current_settings().api
    url = str(api.url)
    spare_loopback()
    check_proxies()
    if api.key is not None and not (api.key.get_secret_value().isascii() and api.key.get_secret_value().isprintable()):
        raise UsageError("PREFECT_API_KEY has characters that an HTTP header cannot have: copy it again")
    try:
        version = await asked_version()
    except httpx.HTTPStatusError as error:
        raise UsageError(wrong_answer(url, error.response) + via_proxy(url)) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise UsageError(f"PREFECT_API_URL {shown(url)} is not a URL such as http://127.0.0.1:4200/api") from None
    except (httpx.HTTPError, OSError) as error:  # also TimeoutError
        raise UsageError(unreachable(url, error) + via_proxy(url)) from None
    except ValueError:
        raise UsageError(no_api(url) + via_proxy(url)) from None
    check_version(url, version)


async def asked_version() -> str:
    """Asks for the API's version. Raises ValueError and what httpx and OSError raise."""
    # A redirect is not followed: custom headers may hold secrets, and Prefect's events do not follow it either.
    client = get_client(httpx_settings={"follow_redirects": False})
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}):
        async with asyncio.timeout(ANSWER_SECONDS), client:
            return await answered_version(client)


async def answered_version(client: PrefectClient) -> str:
    """The API's version. Raises ValueError if the answer is not one of a Prefect API, and what httpx raises."""
    if client.server_type == ServerType.CLOUD:  # which is compatible, and has no version
        await client.read_flows(limit=1)
        return client.client_version()
    version = await client.api_version()
    if not isinstance(version, str) or not version[:1].isdecimal():
        raise ValueError(version)
    return version


def check_version(url: str, version: str) -> None:
    """Raises UsageError if a server has another major version, as Prefect does in the middle of a run."""
    import prefect

    if version.partition(".")[0] != prefect.__version__.partition(".")[0]:
        raise UsageError(
            f"the server at PREFECT_API_URL {shown(url)} is Prefect {version}, and this is Prefect "
            f"{prefect.__version__}: their major versions must match. Upgrade the older one"
        )


def wrong_answer(url: str, response: httpx.Response) -> str:
    """Why an answer is not that of an API that can be used."""
    code, settings = response.status_code, get_current_settings().api
    if code in (401, 403):
        given = "PREFECT_API_AUTH_STRING" if settings.auth_string else "PREFECT_API_KEY" if settings.key else ""
        if given:
            return f"the server at PREFECT_API_URL {shown(url)} refuses this {given} (HTTP {code}): correct it"
        return (
            f"the server at PREFECT_API_URL {shown(url)} wants a password (HTTP {code}): set PREFECT_API_AUTH_STRING "
            "to its user:password, or PREFECT_API_KEY for Prefect Cloud"
        )
    if response.is_redirect:
        target = str(response.url.join(response.headers["location"])).removesuffix("/admin/version")
        return f"PREFECT_API_URL {shown(url)} redirects to {shown(target)}: set the variable to the address of the API"
    if code >= 500 or code in (408, 429):
        return f"the server at PREFECT_API_URL {shown(url)} answers HTTP {code}: see its log, and try again"
    return no_api(url)


def no_api(url: str) -> str:
    """The message for something else than a Prefect API."""
    ends = httpx.URL(url).path.rstrip("/").endswith("/api")
    remedy = "correct it, or unset it" if ends else f"add /api ({shown(url).rstrip('/')}/api)"
    return f"PREFECT_API_URL {shown(url)} answers but is not a Prefect API: {remedy}"


def unreachable(url: str, error: Exception) -> str:
    """The message for an API that does not answer."""
    where = f"no Prefect server at PREFECT_API_URL {shown(url)}"
    if is_tls(error):
        return (
            f"{where}: TLS failed ({error!s:.200}). Set PREFECT_API_SSL_CERT_FILE to the certificate of its authority, "
            "or correct the URL (http:// if it has no TLS)"
        )
    if isinstance(error, httpx.ProxyError):
        return f"{where}: the proxy answers {error!s:.200}"
    why = f"no answer within {ANSWER_SECONDS} s" if isinstance(error, TimeoutError) else f"{error!s:.200}"
    return (
        f"{where} ({why or type(error).__name__}): start it (prefect server start), or correct or unset the variable "
        "(prefect config unset PREFECT_API_URL)"
    )


def via_proxy(url: str) -> str:
    """Says which variable puts a proxy on the way to a URL, if one does."""
    if (proxy := proxy_of(url)) is None:
        return ""
    return (
        f". It was asked through the proxy of {proxy.variable}: correct that, or add {httpx.URL(url).host} to NO_PROXY"
    )


def is_tls(error: BaseException | None) -> bool:
    """Whether an error comes from TLS: httpx wraps it."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def shown(url: Any) -> str:
    """A URL without a password."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return repr(url.rpartition("@")[2])
    return str(parsed.copy_with(userinfo=None, query=None) if parsed.userinfo else parsed.copy_with(query=None))
