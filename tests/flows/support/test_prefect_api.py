"""What is said of a PREFECT_API_URL that cannot record a run, before anything starts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

from flows.support.prefect_api import check_api
from flows.support.prefect_server import TemporaryPrefectServer
from stand_in.ports import free_port
from stand_in.process import StandIn
from tests.conftest import Job
from tests.support.canned_http import canned_http
from vllm_annotate.errors import UsageError

MakeJob = Callable[..., Job]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, "")  # so that what a check sets is undone
        monkeypatch.setenv(name.upper(), "")


async def complaint(url: str, **more: str) -> str:
    """Why a URL is refused; empty if it is not."""
    settings = {"auth_string": PREFECT_API_AUTH_STRING, "key": PREFECT_API_KEY}
    with temporary_settings({PREFECT_API_URL: url} | {settings[name]: value for name, value in more.items()}):
        try:
            await check_api()
        except UsageError as error:
            return str(error)
    return ""


@pytest.fixture(scope="module")
def with_password(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server that wants a password."""
    home = tmp_path_factory.mktemp("with-password")
    settings = {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_AUTH_STRING": "admin:r1ght"}
    server = TemporaryPrefectServer(settings, free_port())
    server.wait_until_ready()
    yield server.api_url
    server.given_up.set()
    server.stop()


@pytest.mark.long
async def test_a_server_with_a_password_accepts_it_and_nothing_else(with_password: str) -> None:
    assert await complaint(with_password, auth_string="admin:r1ght") == ""
    wanted = await complaint(with_password)
    assert f"{with_password} wants a password (HTTP 401): set PREFECT_API_AUTH_STRING" in wanted
    for setting, name in (("auth_string", "PREFECT_API_AUTH_STRING"), ("key", "PREFECT_API_KEY")):
        refused = await complaint(with_password, **{setting: "admin:wr0ng"})
        assert f"refuses this {name} (HTTP 401): correct it" in refused
        assert "wr0ng" not in refused
    # The address of its UI is not that of its API.
    ui = with_password.removesuffix("/api")
    for url in (ui, f"{ui}/"):
        assert await complaint(url) == (
            f"PREFECT_API_URL {url} answers but is not a Prefect API: add /api ({with_password})"
        )


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (200, b"<html>Welcome to nginx!</html>", "answers but is not a Prefect API: correct it, or unset it"),
        (200, b"{}", "answers but is not a Prefect API"),
        (200, b'"no version"', "answers but is not a Prefect API"),
        (404, b"not here", "answers but is not a Prefect API"),
        (500, b"oops", "answers HTTP 500: see its log"),
        (403, b"<html>login</html>", "wants a password (HTTP 403)"),
        (200, b'"2.20.4"', "is Prefect 2.20.4, and this is Prefect 3"),
    ],
)
async def test_what_answers_and_is_no_prefect_api_of_this_version_is_named(
    status: int, body: bytes, wanted: str
) -> None:
    with canned_http(status, body) as (url, _):
        said = await complaint(f"{url}/api")
    assert f"{url}/api" in said
    assert wanted in said


async def test_no_redirect_is_followed_and_no_credentials_reach_its_target() -> None:
    with canned_http(200, b'"3.9.0"') as (target, seen):
        with canned_http(307, headers={"Location": f"{target}/prefect/api/admin/version"}) as (url, asked):
            said = await complaint(f"{url}/api", auth_string="admin:s3cret")
        assert said == (
            f"PREFECT_API_URL {url}/api redirects to {target}/prefect/api: set the variable to the address of the API"
        )
        assert len(asked) == 1
        assert seen == []


async def test_nobody_no_tls_and_no_url_are_told_apart(nobody: str) -> None:
    said = await complaint(f"{nobody}/api")
    assert f"no Prefect server at PREFECT_API_URL {nobody}/api (" in said
    assert "start it (prefect server start)" in said
    with canned_http(200) as (url, _):
        said = await complaint(url.replace("http:", "https:") + "/api")
    assert "TLS failed" in said
    assert "PREFECT_API_SSL_CERT_FILE" in said
    assert "is not a URL such as http://127.0.0.1:4200/api" in await complaint("localhost:4200/api")
    said = await complaint(f"{nobody.replace('//', '//me:s3cret@')}/api")
    assert "s3cret" not in said
    assert f"{nobody}/api" in said


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_in_the_way_is_named_with_its_variable(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with canned_http(403, b"<html>forbidden by policy</html>") as (proxy, asked):
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
        said = await complaint(f"{scheme}://prefect.example:4200/api")
    assert asked[0][0].split()[1].removeprefix("http://").startswith("prefect.example:4200")
    assert said.endswith(
        f"It was asked through the proxy of {scheme}_proxy: correct that, or add prefect.example to NO_PROXY"
    )


async def test_loopback_is_asked_without_a_proxy(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES[:3]:
        monkeypatch.setenv(name, nobody)
    with canned_http(200, b'"3.9.0"') as (url, asked):
        assert await complaint(f"{url}/api") == ""
    assert [target for target, _ in asked] == ["GET /api/admin/version"]


async def test_a_key_that_is_no_header_is_refused_without_showing_it(nobody: str) -> None:
    for key in ("pnu_s3cret\n", "pnu_s3cré"):
        said = await complaint(f"{nobody}/api", key=key)
        assert "PREFECT_API_KEY has characters that an HTTP header cannot have" in said
        assert "s3cr" not in said


def test_the_command_is_refused_with_exit_code_2_and_writes_nothing(
    make_job: MakeJob, stand_in: StandIn, tmp_path: Path
) -> None:
    job: Any = make_job(1)
    with canned_http(200, b"<html>Welcome</html>") as (url, _):
        done = job.run(stand_in.url, PREFECT_API_URL=url)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: PREFECT_API_URL {url} answers but is not a Prefect API: add /api ({url}/api), or add "
        "--without-prefect\n"
    )
    assert not job.work.exists()
