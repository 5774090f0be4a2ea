"""Parsing and classifying responses."""

import json
from typing import Any

import pytest

from vllm_annotate.errors import ImageFailure
from vllm_annotate.inference.responses import Completion, Trouble, own_words, read_response
from vllm_annotate.inference.transport import Response


def shown(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def read(body: bytes, status: int = 200) -> Completion | Trouble:
    return read_response(Response(status, body), shown, 1)


def completion(message: object = None, **choice: object) -> dict[str, Any]:
    """A response of status 200, whose choice has no finish_reason unless it is given."""
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message or {"content": "{}"}, **choice}]}


def read_json(body: object, status: int = 200) -> Completion | Trouble:
    return read(json.dumps(body).encode(), status)


@pytest.mark.parametrize(
    "response",
    [
        b"", b"<html>", b"[" * 200_000,
        b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]}',
    ],
)  # fmt: skip
def test_a_200_without_a_complete_completion_is_the_servers_trouble(response: bytes) -> None:
    assert isinstance(read(response), Trouble)


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_without_text_is_what_the_model_said(key: str) -> None:
    message = f'{{"content": null, "{key}": "a dog"}}'
    for reason in ("stop", "length"):
        answer = read(f'{{"choices": [{{"message": {message}, "finish_reason": "{reason}"}}]}}'.encode())
        assert isinstance(answer, Completion)
        assert (answer.text, answer.finish_reason, answer.only_reasoning) == ("<think>a dog", reason, True)


def test_no_text_and_no_reasoning_is_an_empty_answer() -> None:
    answer = read(b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}')
    assert isinstance(answer, Completion)
    assert (answer.text, answer.only_reasoning) == ("", False)


def test_a_completion_with_a_lone_surrogate_can_be_encoded() -> None:
    answer = read(b'{"choices": [{"message": {"content": "\\ud83d!"}, "finish_reason": "stop"}]}')
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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "dog"}], "a dog"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a dog"}],
            "a dog",
        ),
        (["a ", "dog"], "a dog"),
        ([], ""),
        (None, ""),
    ],
)
def test_content_in_parts_is_joined(content: object, text: str) -> None:
    answer = read_json(completion({"role": "assistant", "content": content, "refusal": None}, finish_reason="stop"))
    assert isinstance(answer, Completion)
    assert answer.text == text


@pytest.mark.parametrize("content", [7, {"text": "a dog"}, True])
def test_content_that_is_no_text_is_named(content: object) -> None:
    trouble = read_json(completion({"content": content}, finish_reason="stop"))
    assert isinstance(trouble, Trouble)
    assert f"its content is not text but {type(content).__name__}" in trouble.message


@pytest.mark.parametrize(
    ("reason", "means"),
    [("eos", "stop"), ("eos_token", "stop"), ("end_turn", "stop"), ("STOP", "stop"), ("stop_sequence", "stop"),
     ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("model_length", "length"), ("repetition", "repetition")],
)  # fmt: skip
def test_the_finish_reasons_of_other_servers_are_understood(reason: str, means: str) -> None:
    answer = read_json(completion(finish_reason=reason))
    assert isinstance(answer, Completion)
    assert answer.finish_reason == means


@pytest.mark.parametrize("choice", [{}, {"finish_reason": None}])
@pytest.mark.parametrize(
    ("text", "means"),
    [
        ('{"objects": []}', "stop"), ("[]", "stop"), ('```json\n{"objects": []}\n```', "stop"),
        ('{"objects": [', "length"), ("A dog.", "length"), ("", "length"),
    ],
)  # fmt: skip
def test_without_a_finish_reason_only_whole_json_counts_as_whole(
    choice: dict[str, None], text: str, means: str
) -> None:
    answer = read_json(completion({"content": text}, **choice))
    assert isinstance(answer, Completion)
    assert answer.finish_reason == means


@pytest.mark.parametrize("reason", ["abort", "error", "cancelled", 7, "stopped by " + "a" * 1000])
def test_other_finish_reasons_are_named(reason: object) -> None:
    trouble = read_json(completion(finish_reason=reason))
    assert isinstance(trouble, Trouble)
    assert f"finish_reason is '{reason!s:.30}" in trouble.message
    assert len(trouble.message) < 100


@pytest.mark.parametrize(
    ("reason", "said"), [("content_filter", "content filter withheld"), ("tool_calls", "called a tool")]
)
def test_an_answer_that_will_never_come_is_the_images_failure(reason: str, said: str) -> None:
    with pytest.raises(ImageFailure, match=rf"HTTP 200, but .*{said}.*{reason}") as caught:
        read_json(completion({"content": None, "tool_calls": [{}]}, finish_reason=reason))
    assert caught.value.kind == "rejected"


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n',
        b": ping\n\ndata: {}",
        b"event: message\n",
    ],
)
def test_a_stream_that_nobody_asked_for_is_named(body: bytes) -> None:
    with pytest.raises(ImageFailure, match="HTTP 200, but a stream of events, which no request asks for"):
        read(body)


@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        ({"message": "Provider returned error", "code": 502}, "gateway", "HTTP 502: Provider returned error"),
        ({"message": "slow down", "code": 429}, "busy", "HTTP 429: slow down"),
        ({"message": "CUDA error", "code": "internal"}, "server", "HTTP 200 with an error: CUDA error"),
        ("CUDA error", "server", "HTTP 200 with an error: CUDA error"),
        ({"code": 10**40}, "server", "HTTP 200 with an error"),
    ],
)  # fmt: skip
def test_an_error_with_status_200_is_an_error(error: object, cause: str, said: str) -> None:
    for body in ({"error": error}, completion(error=error, finish_reason="error")):
        trouble = read_json(body)
        assert isinstance(trouble, Trouble)
        assert trouble.cause == cause
        assert trouble.message.startswith(said)


def test_an_error_with_status_200_may_be_the_images() -> None:
    with pytest.raises(ImageFailure, match="HTTP 400: no images, please"):
        read_json({"error": {"message": "no images, please", "code": 400}})


@pytest.mark.parametrize(
    "usage", [None, [], {}, {"completion_tokens": -5}, {"completion_tokens": 10**40}, {"completion_tokens": True}]
)
def test_a_usage_that_makes_no_sense_is_none(usage: object) -> None:
    answer = read_json(completion(finish_reason="stop") | {"usage": usage, "system_fingerprint": {}, "x": [1]})
    assert isinstance(answer, Completion)
    assert (answer.prompt_tokens, answer.completion_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"message": "no Route matched with those values", "request_id": "a"}'),  # Kong
        (404, b"404 page not found\n"),  # Traefik
        (404, b"default backend - 404"),  # ingress-nginx
        (404, b'{"error": "Not Found", "status": 404, "path": "/v1/chat/completions"}'),  # Spring Cloud Gateway
        (404, b'{"error_msg": "404 Route Not Found"}'),  # APISIX
        (404, b'{"detail": "Not Found"}'),  # FastAPI, as of a router
        (502, b'{"error": {"message": "Bad Gateway"}}'), (504, b""), (522, b"<html>"),
        (503, b"no healthy upstream"), (503, b"no available server"),  # Envoy, Traefik
        (200, b"<html>We are back soon</html>"), (200, b""), (200, b'{"status": "maintenance"}'), (204, b""),
    ],
)  # fmt: skip
def test_a_gateway_without_a_server_is_told_apart(status: int, body: bytes) -> None:
    trouble = read(body, status)
    assert isinstance(trouble, Trouble)
    assert trouble.cause == "gateway"


@pytest.mark.parametrize(
    ("status", "cause"),
    [(429, "busy"), (503, "busy"), (404, "not_found"), (401, "refused"), (402, "refused"), (403, "refused"),
     (407, "refused"), (302, "refused"), (408, "server"), (500, "server")],
)  # fmt: skip
def test_a_model_servers_error_is_classified_by_its_status(status: int, cause: str) -> None:
    trouble = read_json({"error": {"message": "so", "type": "t", "code": status}}, status)
    assert isinstance(trouble, Trouble)
    assert trouble.cause == cause
