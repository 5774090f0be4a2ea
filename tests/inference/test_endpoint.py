"""Parsing and classifying responses."""

import pytest

from vllm_annotate.inference.responses import Completion, Trouble, own_words, read_completion


@pytest.mark.parametrize(
    "response",
    [
        b"", b"<html>", b"[" * 200_000,
        b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]}',
    ],
)  # fmt: skip
def test_a_200_without_a_complete_completion_is_the_servers_trouble(response: bytes) -> None:
    assert isinstance(read_completion(response, 1), Trouble)


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_without_text_is_what_the_model_said(key: str) -> None:
    message = f'{{"content": null, "{key}": "a dog"}}'
    for reason in ("stop", "length"):
        answer = read_completion(f'{{"choices": [{{"message": {message}, "finish_reason": "{reason}"}}]}}'.encode(), 1)
        assert isinstance(answer, Completion)
        assert (answer.text, answer.finish_reason, answer.only_reasoning) == ("<think>a dog", reason, True)


def test_no_text_and_no_reasoning_is_an_empty_answer() -> None:
    answer = read_completion(b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}', 1)
    assert isinstance(answer, Completion)
    assert (answer.text, answer.only_reasoning) == ("", False)


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
