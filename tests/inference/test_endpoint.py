"""Parsing and classifying responses."""

import pytest

from vllm_annotate.inference.endpoint import proxy_of
from vllm_annotate.inference.responses import Completion, Trouble, own_words, read_completion


@pytest.mark.parametrize(
    "response",
    [
        b"", b"<html>", b"[" * 200_000,
        b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]}',
    ],
)  # fmt: skip
def test_a_200_without_a_complete_completion_is_the_servers_trouble(response: bytes) -> None:
    assert isinstance(read_completion(response, 1), Trouble)


def test_a_completion_with_a_lone_surrogate_can_be_encoded() -> None:
    answer = read_completion(b'{"choices": [{"message": {"content": "\\ud83d!"}, "finish_reason": "stop"}]}', 1)
    assert isinstance(answer, Completion)
    assert answer.text.encode().endswith(b"!")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "too long", "type": "BadRequestError"}}', "too long"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b'{"error": "no such route"}', "no such route"),
        (b"<html>502 Bad Gateway</html>", "<html>502 Bad Gateway</html>"),
        (b'{"error": {"message": ""}}', '{"error": {"message": ""}}'),
        (b'["error"]', '["error"]'), (b"\xff", "\ufffd"), (b"", ""),
    ],
)  # fmt: skip
def test_an_error_has_the_servers_message(body: bytes, words: str) -> None:
    assert own_words(body) == words


def test_proxies_from_the_environment_are_used_for_other_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:word@proxy:3128")
    monkeypatch.setenv("no_proxy", "near,.corp")
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("all_proxy", raising=False)
    assert proxy_of("http://far:8000/v1") == "http://user:word@proxy:3128"
    for url in ("http://near:8000/v1", "http://gpu.corp/v1", "http://127.0.0.1:8000/v1", "https://far/v1"):
        assert proxy_of(url) is None
