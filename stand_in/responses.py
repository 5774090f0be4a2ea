"""Responses as vLLM writes them."""

import time
from typing import Any

import orjson
from fastapi import Response


class Refused(Exception):
    """An error response in vLLM's format."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind

    def response(self) -> Response:
        """The response."""
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.status}
        return as_json({"error": error}, self.status)


def as_json(body: dict[str, Any], status: int = 200) -> Response:
    """A response with a JSON body."""
    return Response(orjson.dumps(body), status, media_type="application/json")


def completion(model: str, text: str, finish_reason: str, usage: tuple[int, int] | None) -> dict[str, Any]:
    """The body of a chat completion; `usage` is the numbers of prompt and completion tokens."""
    message = {"role": "assistant", "content": text}
    body = {
        "id": f"chatcmpl-{time.monotonic_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return body
