"""Classifies a response: a completion, trouble that a retry may cure, or a failure of this image."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vllm_annotate.errors import ImageFailure
from vllm_annotate.inference.transport import Response
from vllm_annotate.storage.json_text import json_object, loads

# A gateway whose server is away. 520 to 530 are Cloudflare's.
GATEWAY = (502, 504, *range(520, 531))
REFUSED = (401, 402, 403, 407)
# The words of other servers: TGI, SGLang, Together, Anthropic, Mistral.
STOPPED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
TOO_LONG = ("length", "max_tokens", "model_length")
# What ends every answer to the same request in this way; in a message.
NO_ANSWERS = {
    "content_filter": "a content filter withheld the answer",
    "tool_calls": "the model called a tool instead of answering",
    "function_call": "the model called a tool instead of answering",
}
EVENTS = (b"data:", b"event:", b":")  # how a stream of events begins
MOST_TOKENS = 10_000_000  # of one request; a larger count is none

Shown = Callable[[bytes | str], str]  # makes a server's words safe to show


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

    `cause` tells whose it probably is: that of the "server" or of this request; of its load ("busy"), of a "gateway"
    without a server, or of a connection that was "lost": none of these counts as an attempt while the server is
    healthy; or of who asks ("refused"); "not_found" is a 404 of a model server.
    """

    kind: Literal["server", "timeout", "rejected"]  # the failure kind if the attempts run out
    message: str
    cause: Literal["server", "busy", "gateway", "lost", "refused", "not_found"] = "server"


def read_response(response: Response, shown: Shown, attempt: int) -> Completion | Trouble:
    """The completion in a response, or the trouble; raises ImageFailure if the request itself is at fault."""
    if response.status == 200:
        return read_completion(response.body, shown, attempt)
    if 300 <= response.status < 400:
        message = f"HTTP {response.status}: redirects to {shown(response.location) or 'nowhere'}"
        return Trouble("rejected", message, "refused")
    return _classify(response.status, response.body, shown, attempt)


def own_words(body: bytes) -> str:
    """The message in an error's body; the body itself if its format is not vLLM's or OpenAI's."""
    found = json_object(body) or {}
    error = found.get("error", found)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else body[:2000].decode(errors="replace")


def _classify(status: int, body: bytes, shown: Shown, attempt: int) -> Trouble:
    message = f"HTTP {status}: {shown(own_words(body))}"
    from_gateway = not _is_from_model_server(body)
    if status == 429 or (status == 503 and not from_gateway):
        return Trouble("server", message, "busy")
    if status in GATEWAY or status < 300 or (status in (404, 503) and from_gateway):
        return Trouble("timeout" if status == 504 else "server", message, "gateway")
    if status == 404:
        return Trouble("rejected", message, "not_found")
    if status in REFUSED:
        return Trouble("rejected", message, "refused")
    if status in (408, 409, 425) or status >= 500:
        return Trouble("server", message)
    raise ImageFailure("rejected", message, attempt)


def _is_from_model_server(body: bytes) -> bool:
    """Whether an error has the format of vLLM or OpenAI. Gateways have others, such as {"error": "Not Found"}."""
    found = json_object(body) or {}
    error = found.get("error")
    return found.get("object") == "error" or (isinstance(error, dict) and isinstance(error.get("message"), str))


def read_completion(response: bytes, shown: Shown, attempt: int) -> Completion | Trouble:
    """Reads the body of a 200 response. Raises ImageFailure if the server would answer likewise again.

    vLLM answers 200 with "abort" and half a text when it is stopped: the server's trouble.
    """
    body = json_object(response) or {}
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    if error := body.get("error") or choice.get("error"):
        return _error_in_200(error, shown, attempt)
    if response.lstrip().startswith(EVENTS):
        message = f"HTTP 200, but a stream of events, which no request asks for: {shown(response)}"
        raise ImageFailure("rejected", message, attempt)
    said = choice.get("message")
    if not isinstance(said, dict):
        words = f"HTTP 200, but not a chat completion: {shown(response)}"
        # Without any choices it is not from a model server: a page that says "maintenance" or "log in".
        return Trouble("server", words, "server" if "choices" in body else "gateway")
    usage = body.get("usage")
    return _read_choice(said | choice, usage if isinstance(usage, dict) else {}, shown, attempt)


def _read_choice(choice: dict[str, Any], usage: dict[str, Any], shown: Shown, attempt: int) -> Completion | Trouble:
    reason, text = choice.get("finish_reason"), _text(choice.get("content"))
    if said := NO_ANSWERS.get(str(reason)):
        raise ImageFailure("rejected", f"HTTP 200, but {said}: finish_reason is {reason!r}", attempt)
    if text is None:
        return Trouble("server", f"incomplete answer: its content is not text but {type(choice['content']).__name__}")
    if (finish_reason := _finish_reason(reason, text)) is None:
        return Trouble("server", f"incomplete answer: finish_reason is {shown(str(reason))!r:.40}")
    reasoning = choice.get("reasoning") or choice.get("reasoning_content")
    only_reasoning = not text and isinstance(reasoning, str) and bool(reasoning)
    if only_reasoning:
        text = f"<think>{reasoning}"  # not an answer, but all that the model said
    counts = (_count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))
    return Completion(text, finish_reason, *counts, attempt, only_reasoning)


def _error_in_200(error: object, shown: Shown, attempt: int) -> Trouble:
    """The trouble of an error that comes with status 200: OpenRouter names the real status in `code`."""
    body = json.dumps({"error": error}).encode()
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return _classify(code, body, shown, attempt)
    return Trouble("server", f"HTTP 200 with an error: {shown(own_words(body))}")


def _text(content: object) -> str | None:
    """The text of a message, which some servers send in parts; None if it is something else."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else "" if content is None else None


def _finish_reason(reason: object, text: str) -> Literal["stop", "length", "repetition"] | None:
    """The reason in vLLM's words; None if the answer is incomplete. Without one, whole JSON shows that it is not."""
    if reason is None:
        return "stop" if _is_json(text) else "length"
    word = str(reason).lower()
    if word in STOPPED:
        return "stop"
    if word in TOO_LONG:
        return "length"
    return "repetition" if word == "repetition" else None  # vLLM's stop for loops


def _is_json(text: str) -> bool:
    """Whether the text is a whole JSON object or list, perhaps between fences."""
    try:
        return isinstance(loads(text.strip().removeprefix("```json").strip("`")), dict | list)
    except ValueError:
        return False


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0
