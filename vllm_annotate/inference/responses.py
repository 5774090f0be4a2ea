"""Classifies a response: a completion, trouble that a retry may cure, or a failure of this image."""

from dataclasses import dataclass
from typing import Any, Literal

from vllm_annotate.errors import ImageFailure
from vllm_annotate.storage.json_text import json_object, loads


@dataclass(frozen=True)
class Completion:
    """An answer; complete only if its finish_reason is "stop"."""

    text: str
    finish_reason: Literal["stop", "length", "repetition"]
    prompt_tokens: int
    completion_tokens: int
    attempts: int


@dataclass(frozen=True)
class Trouble:
    """A failed attempt that a retry may cure."""

    kind: str  # the failure kind if the attempts run out: server or timeout
    message: str
    busy: bool = False  # declined because of load: does not count as an attempt
    refused: bool = False  # declines every request: wrong key or model


def own_words(response: bytes) -> str:
    """The message in an error's body; the body itself if its format is not vLLM's or OpenAI's."""
    body = json_object(response) or {}
    error = body.get("error", body)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else response[:1000].decode(errors="replace")


def classify(status: int, message: str, attempt: int) -> Trouble:
    """The trouble behind an HTTP error status; raises ImageFailure if the request itself is at fault."""
    if status in (401, 403, 404):
        return Trouble("server", message, refused=True)
    if status in (408, 409, 425) or status >= 500 or status == 429:
        return Trouble("server", message, busy=status in (429, 503))
    raise ImageFailure("rejected", message, attempt)


def lowest_cause(error: BaseException) -> BaseException:
    """The root of a chain of exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def read_completion(response: bytes, attempt: int) -> Completion | Trouble:
    """Parses a 200 response.

    finish_reason "length" and "repetition" (vLLM's stop for loops) are the model's doing. vLLM answers 200 with "abort"
    and half a text when it is stopped: the server's trouble.
    """
    try:
        body = loads(response)
        choice = body["choices"][0]
        text, finish_reason = choice["message"]["content"], choice["finish_reason"]
    except (ValueError, LookupError, TypeError):
        return Trouble("server", f"HTTP 200, but not a chat completion: {response[:200]!r}")
    if finish_reason not in ("stop", "length", "repetition") or not isinstance(text, str):
        return Trouble("server", f"incomplete answer: finish_reason is {finish_reason!r:.40}")
    usage = body.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    return Completion(
        text, finish_reason, _count(tokens, "prompt_tokens"), _count(tokens, "completion_tokens"), attempt
    )


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
