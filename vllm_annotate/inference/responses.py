"""Classifies a response: a completion, trouble that a retry may cure, or a failure of this image."""

from dataclasses import dataclass
from typing import Any, Literal

from vllm_annotate.errors import ImageFailure
from vllm_annotate.storage.json_text import json_object, loads

# A gateway whose server is away, or that has no route to it while it restarts. 520 to 530 are Cloudflare's.
GATEWAY = (502, *range(520, 531))
BUSY = (429, 503)


@dataclass(frozen=True)
class Completion:
    """An answer; complete only if its finish_reason is "stop"."""

    text: str
    finish_reason: Literal["stop", "length", "repetition"]
    prompt_tokens: int
    completion_tokens: int
    attempts: int
    only_reasoning: bool = False  # the server's reasoning parser left no text


@dataclass(frozen=True)
class Trouble:
    """A failed attempt that a retry may cure.

    `cause` tells whose it probably is: that of the "server" or of this request; of its load ("busy") or of a "gateway"
    without a server, neither of which counts as an attempt; or of who asks ("refused").
    """

    kind: Literal["server", "timeout", "rejected"]  # the failure kind if the attempts run out
    message: str
    cause: Literal["server", "busy", "gateway", "refused"] = "server"


def own_words(body: bytes) -> str:
    """The message in an error's body; the body itself if its format is not vLLM's or OpenAI's."""
    found = json_object(body) or {}
    error = found.get("error", found)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else body[:2000].decode(errors="replace")


def classify(status: int, words: str, location: str, *, from_model_server: bool, attempt: int) -> Trouble:
    """The trouble behind an HTTP status other than 200; raises ImageFailure if the request itself is at fault.

    `from_model_server`: the error has the format of vLLM or OpenAI, so that it is not from a gateway before it.
    """
    message = f"HTTP {status}: {words}"
    if 300 <= status < 400:
        return Trouble("rejected", f"HTTP {status}: redirects to {location or 'nowhere'}", "refused")
    if status in BUSY:
        return Trouble("server", message, "busy")
    if status in GATEWAY or (status == 404 and not from_model_server):
        return Trouble("server", message, "gateway")
    if status in (401, 403, 404):
        return Trouble("rejected", message, "refused")
    if status == 504:  # the gateway stopped waiting
        return Trouble("timeout", message, "gateway")
    if status in (408, 409, 425) or status >= 500:
        return Trouble("server", message)
    raise ImageFailure("rejected", message, attempt)


def is_from_model_server(body: bytes) -> bool:
    """Whether an error has the format of vLLM or OpenAI."""
    found = json_object(body) or {}
    return isinstance(found.get("error"), dict | str) or found.get("object") == "error"


def read_completion(response: bytes, attempt: int) -> Completion | Trouble:
    """Parses a 200 response.

    finish_reason "length" and "repetition" (vLLM's stop for loops) are the model's doing. vLLM answers 200 with "abort"
    and half a text when it is stopped: the server's trouble.
    """
    try:
        body = loads(response)
        choice = body["choices"][0]
        message, finish_reason = choice["message"], choice["finish_reason"]
        text, reasoning = message["content"], message.get("reasoning") or message.get("reasoning_content")
    except (ValueError, LookupError, TypeError, AttributeError):
        from_gateway = json_object(response) is None  # a page that says "maintenance" or "log in"
        message = f"HTTP 200, but not a chat completion: {response[:200]!r}"
        return Trouble("server", message, "gateway" if from_gateway else "server")
    if finish_reason not in ("stop", "length", "repetition") or not isinstance(text, str | None):
        return Trouble("server", f"incomplete answer: finish_reason is {finish_reason!r:.40}")
    only_reasoning = not text and isinstance(reasoning, str) and bool(reasoning)
    if only_reasoning:
        text = f"<think>{reasoning}"  # not an answer, but all that the model said
    usage = body.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    counts = (_count(tokens, "prompt_tokens"), _count(tokens, "completion_tokens"))
    return Completion(text or "", finish_reason, *counts, attempt, only_reasoning)


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
