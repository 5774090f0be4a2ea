"""What a response means: an answer, trouble that another attempt may end, or a failure of this image."""

from dataclasses import dataclass
from typing import Any, Literal

from vllm_annotate.errors import ImageFailure
from vllm_annotate.storage.json_text import json_object, loads


@dataclass(frozen=True)
class Completion:
    """An answer; a whole one if its finish_reason is "stop"."""

    text: str
    finish_reason: Literal["stop", "length", "repetition"]
    prompt_tokens: int
    completion_tokens: int
    attempts: int


@dataclass(frozen=True)
class Trouble:
    """An attempt without an answer: why, and what it says about image and server."""

    kind: str  # the failure kind, should the attempts run out: server or timeout
    message: str
    busy: bool = False  # the server declined for load: no attempt is counted
    refused: bool = False  # the server declines whatever it is asked: wrong key or model


def own_words(response: bytes) -> str:
    """What an error's body says; as it is where it is none of vLLM's or OpenAI's."""
    body = json_object(response) or {}
    error = body.get("error", body)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else response[:1000].decode(errors="replace")


def classify(status: int, message: str, attempt: int) -> Trouble:
    """What an HTTP status that is no answer means; raises ImageFailure where the request itself is at fault."""
    if status in (401, 403, 404):
        return Trouble("server", message, refused=True)
    if status in (408, 409, 425) or status >= 500 or status == 429:
        return Trouble("server", message, busy=status in (429, 503))
    raise ImageFailure("rejected", message, attempt)


def lowest_cause(error: BaseException) -> BaseException:
    """The error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def read_completion(response: bytes, attempt: int) -> Completion | Trouble:
    """The completion in a 200 response.

    Only finish_reason "stop" is whole; "length" and "repetition" (vLLM's stop for loops) are the model's doing. vLLM
    answers 200 with "abort" and half a text when it is stopped, which is the server's trouble.
    """
    try:
        body = loads(response)
        choice = body["choices"][0]
        text, finish_reason = choice["message"]["content"], choice["finish_reason"]
    except (ValueError, LookupError, TypeError):
        return Trouble("server", f"HTTP 200 that is no chat completion: {response[:200]!r}")
    if finish_reason not in ("stop", "length", "repetition") or not isinstance(text, str):
        return Trouble("server", f"an answer with finish_reason {finish_reason!r:.40} is not whole")
    usage = body.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    return Completion(
        text, finish_reason, _count(tokens, "prompt_tokens"), _count(tokens, "completion_tokens"), attempt
    )


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
