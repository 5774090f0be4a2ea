"""Faults that requests get instead of an answer, or in it."""

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Literal

from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from stand_in.prompts import Prompt
from stand_in.responses import Refused, as_json

SHIFT = 0.15  # of the image, right and down


class Fault(BaseModel):
    """A fault of the next requests: of those for images of the input, or of a proof; kind shift is of both."""

    kind: Literal[
        "500", "503", "400", "401", "404", "firewall",
        "reset", "stall", "crash", "abort", "length", "malformed", "text", "reasoning", "echo", "shift", "unsure",
    ]  # fmt: skip
    count: int | None = Field(default=1, description="Number of requests; null for all from now on.")
    text: str = Field(default="", description="Answer of kind text or reasoning.")
    finish_reason: Literal["stop", "length", "repetition"] = Field(default="stop", description="Of the same kinds.")
    match: str = Field(default="", description="Only requests whose text matches this regular expression.")
    proof: bool = Field(default=False, description="Only requests of a proof, which other faults spare.")
    seed: int = Field(default=0, description="Of kind unsure: which objects are hard.")
    seconds: float = Field(default=3600, description="Duration of kind stall.")
    status: int = Field(default=400, description="Of kind echo: an error that repeats the request's headers.")
    characters: int | None = Field(default=None, description="Of kind echo: where it is cut off.")

    def hits(self, prompt: Prompt) -> bool:
        """Whether this request gets it."""
        if self.proof != prompt.is_proof and (self.proof or self.kind != "shift"):
            return False
        return re.search(self.match, prompt.text) is not None

    async def response(self, headers: dict[str, str]) -> Response | None:
        """The response that replaces the answer; None for faults that change the answer. Raises Refused."""
        if self.kind == "echo":
            raise Refused(self.status, f"{self.text}{headers}"[: self.characters])
        if self.kind == "crash":
            os._exit(1)
        if self.kind == "stall":
            await asyncio.sleep(self.seconds)
            return None
        if self.kind == "reset":
            return StreamingResponse(_broken_off(), headers={"Content-Length": "1000"})
        if self.kind == "firewall":  # of a gateway that dislikes the text
            return Response("<html><h1>403 Forbidden</h1></html>", 403, media_type="text/html")
        if self.kind == "401":
            return as_json({"error": "Unauthorized"}, 401)
        if self.kind.isdigit():
            names = {"400": "BadRequestError", "404": "NotFoundError", "500": "InternalServerError"}
            raise Refused(
                int(self.kind), f"stand-in fault {self.kind}", names.get(self.kind, "ServiceUnavailableError")
            )
        return None

    def change(self, answer: str, finish_reason: str) -> tuple[str, str]:
        """The answer and its finish_reason, with the fault in them."""
        if self.kind in ("text", "reasoning"):
            return self.text, self.finish_reason
        if self.kind in ("abort", "length"):
            return answer[: len(answer) // 2], self.kind
        if self.kind == "malformed":
            return "I am sorry, I cannot see any image here.", finish_reason
        return answer, finish_reason


class Faults:
    """The faults that wait for their requests."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._faults = deque(faults)

    def next_for(self, prompt: Prompt) -> Fault | None:
        """The first fault that hits this request; takes one off its count."""
        for fault in self._faults:
            if fault.hits(prompt):
                if fault.count is not None:
                    fault.count -= 1
                    if fault.count <= 0:
                        self._faults.remove(fault)
                return fault
        return None


async def _broken_off() -> AsyncIterator[bytes]:
    yield b'{"id": "chatcmpl-'
    raise ConnectionResetError("stand-in fault reset")
