"""What a server's bytes mean."""

import pytest

from flows.endpoint import Completion, Trouble, read_completion


@pytest.mark.parametrize(
    "response",
    [
        b"", b"<html>", b"[" * 200_000,
        b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]}',
    ],
)  # fmt: skip
def test_a_200_that_is_no_whole_completion_is_the_servers_trouble(response: bytes) -> None:
    assert isinstance(read_completion(response, 1), Trouble)


def test_a_completion_with_a_lone_surrogate_can_be_written_down() -> None:
    answer = read_completion(b'{"choices": [{"message": {"content": "\\ud83d!"}, "finish_reason": "stop"}]}', 1)
    assert isinstance(answer, Completion)
    assert answer.text.encode().endswith(b"!")
