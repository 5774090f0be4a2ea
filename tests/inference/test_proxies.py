"""Proxies that the environment sets: which, and what is never said of them."""

import asyncio
import base64

import pytest

from tests.inference.test_client import body, inference, raw_server
from vllm_annotate.errors import ServerUnavailable, UsageError
from vllm_annotate.inference.proxies import is_loopback, proxy_of

WORD = "pass-word-42"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("value", "url", "shown"),
    [
        (f"http://me:{WORD}@proxy:3128", f"http://me:{WORD}@proxy:3128", "http://proxy:3128"),
        (f"me:{WORD}@proxy:3128", f"http://me:{WORD}@proxy:3128", "http://proxy:3128"),
        ("proxy:3128", "http://proxy:3128", "http://proxy:3128"),
        ("https://proxy", "https://proxy", "https://proxy"),
    ],
)
def test_a_proxy_is_used_for_other_machines_only(
    monkeypatch: pytest.MonkeyPatch, value: str, url: str, shown: str
) -> None:
    monkeypatch.setenv("http_proxy", value)
    monkeypatch.setenv("no_proxy", "near,.corp")
    proxy = proxy_of("http://far:8000/v1")
    assert proxy is not None
    assert (proxy.url, str(proxy)) == (url, shown)
    for other in ("http://near:8000/v1", "http://gpu.corp/v1", "http://127.0.0.1:8000/v1", "https://far/v1"):
        assert proxy_of(other) is None
    monkeypatch.setenv("all_proxy", "other:1080")
    assert str(proxy_of("https://far/v1")) == "http://other:1080"


@pytest.mark.parametrize(
    "value",
    [f"socks5://me:{WORD}@proxy:1080", f"http://me:{WORD}@[bad", f"http://me:{WORD}@proxy:99999", "http://"],
)
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("https_proxy", value)
    with pytest.raises(
        UsageError, match=r"environment variable https_proxy .*: set it to http://HOST:PORT.*no_proxy"
    ) as e:
        proxy_of("https://far/v1")
    assert not any(piece in str(e.value) for piece in pieces(WORD))


@pytest.mark.parametrize(
    ("host", "here"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("[::1]", True), ("127.0.0.1.example.com", False),
     ("gpu-1", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_only_loopback_addresses_are_this_machine(host: str, here: bool) -> None:
    assert is_loopback(f"http://{host}:8000/v1") is here


def pieces(secret: str) -> list[str]:
    return [secret[start : start + 6] for start in range(len(secret) - 5)]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("written", [WORD, "pass%2Dword%2D42"])
@pytest.mark.parametrize("head", ["http://me:{}@", "me:{}@", "http://{}@"])
async def test_no_piece_of_a_proxys_password_is_said_however_it_comes_back(
    monkeypatch: pytest.MonkeyPatch, scheme: str, written: str, head: str
) -> None:
    """The proxy repeats the request, which has the password in base64, as its reason and its body."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        echo = b" ".join(heads[-1].split()) + f" {WORD} {written}".encode()
        writer.write(b"HTTP/1.1 407 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (echo, len(echo), echo))
        await writer.drain()
        writer.close()

    async with raw_server(talk) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", head.format(written) + proxy.removeprefix("http://"))
        async with inference(f"{scheme}://far.invalid:8000", server_wait_seconds=0.1) as client:
            with pytest.raises(
                ServerUnavailable, match=r"through the proxy http://127.*407.*far.invalid to no_proxy"
            ) as e:
                await client.check(None)
            with pytest.raises(ServerUnavailable) as other:
                await client.ask(body())
    user = WORD if head == "http://{}@" else f"me:{WORD}"
    sent = base64.b64encode(f"{user}:".encode() if user == WORD else user.encode()).decode()
    assert sent.encode() in heads[0]
    said = f"{e.value} {other.value}"
    assert not [piece for secret in (WORD, written, sent) for piece in pieces(secret) if piece in said]
