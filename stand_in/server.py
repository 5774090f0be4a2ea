"""The HTTP interface of the stand-in: vLLM's endpoints and error bodies, and controls for tests."""

import asyncio
import base64
import binascii
import hashlib
import io
import os
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, Field

from stand_in.answers import describe
from stand_in.batching import Engine, Timing
from vllm_annotate.recipe.image_budget import ImageBudget

VERSION = "0.32.0"  # of the vLLM whose interface this is
TEXT_TOKEN_CHARACTERS = 4


class Fault(BaseModel):
    """A fault that the next requests get instead of an answer."""

    kind: Literal[
        "500", "503", "400", "401", "404", "firewall",
        "reset", "stall", "crash", "abort", "length", "malformed", "text", "reasoning", "echo",
    ]  # fmt: skip
    count: int | None = Field(default=1, description="Number of requests; null for all from now on.")
    text: str = Field(default="", description="Answer of kind text or reasoning.")
    finish_reason: Literal["stop", "length", "repetition"] = Field(default="stop", description="Of the same kinds.")
    match: str = Field(default="", description="Only requests whose text matches this regular expression.")
    seconds: float = Field(default=3600, description="Duration of kind stall.")
    status: int = Field(default=400, description="Of kind echo: an error that repeats the request's headers.")
    characters: int | None = Field(default=None, description="Of kind echo: where it is cut off.")


@dataclass
class Settings:
    """Settings of the stand-in; names follow `vllm serve`."""

    model: str = "stand-in-qwen2.5-vl"
    api_key: str | None = None
    max_model_len: int = 8192
    allowed_local_media_path: Path | None = None
    budget: ImageBudget = field(default_factory=lambda: ImageBudget(min_pixels=56 * 56, max_pixels=12_845_056))
    timing: Timing = field(default_factory=Timing)
    canned: bool = False  # the same answer for every image, for measuring clients
    metrics: bool = True
    faults: list[Fault] = field(default_factory=list)  # of the first requests


class Refused(Exception):
    """An error response in vLLM's format."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind


def create_app(settings: Settings) -> FastAPI:  # noqa: C901 - one small function per route
    """The stand-in as an ASGI application."""
    app = FastAPI()
    engine = Engine(settings.timing, settings.model)
    faults: deque[Fault] = deque(settings.faults)
    asked: Counter[str] = Counter()
    first: list[float] = []  # Unix time of the first request since the last DELETE
    images: Counter[str] = Counter()
    schemes: Counter[str] = Counter()  # of the images' URLs
    temperatures: defaultdict[str, list[float]] = defaultdict(list)

    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Refused) -> Response:
        body = {"error": {"message": error.message, "type": error.kind, "param": None, "code": error.status}}
        return _json(body, error.status)

    @app.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Any:
        wanted = settings.api_key and request.url.path.startswith("/v1")
        if wanted and request.headers.get("authorization") != f"Bearer {settings.api_key}":
            return _json({"error": "Unauthorized"}, 401)
        return await call_next(request)

    @app.get("/health")
    @app.get("/ping")
    async def health() -> Response:
        return Response()

    @app.get("/version")
    async def version() -> dict[str, Any]:
        return {
            "version": VERSION,
            "stand_in": True,
            "note": "a stand-in for vLLM, not a model",
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": settings.model, "object": "model", "owned_by": "stand-in", "root": f"/models/{settings.model}"}
        return {"object": "list", "data": [model | {"max_model_len": settings.max_model_len}]}

    @app.get("/metrics")
    async def metrics() -> Response:
        if not settings.metrics:
            return _json({"detail": "Not Found"}, 404)
        return Response(engine.metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/load")
    async def load() -> dict[str, int]:
        return {"server_load": engine.load}

    @app.post("/stand_in/faults")
    async def set_faults(new: list[Fault]) -> None:
        faults.clear()
        faults.extend(new)

    @app.get("/stand_in/asked")
    async def get_asked() -> dict[str, Any]:
        return {
            "texts": asked,
            "images": images,
            "schemes": schemes,
            "temperatures": temperatures,
            "most_at_once": engine.most_at_once,
            "first_at": first[0] if first else None,
        }

    @app.delete("/stand_in/asked")
    async def forget_asked() -> None:
        asked.clear()
        images.clear()
        schemes.clear()
        temperatures.clear()
        first.clear()
        engine.most_at_once = 0

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = _body(await request.body(), settings)
        text, url = _user_content(body)
        asked[text] += 1
        schemes[url.partition(":")[0]] += 1
        temperatures[text].append(float(body.get("temperature", 1)))
        if not first:
            first.append(time.time())
        fault = _next_fault(faults, text)
        if fault is not None and fault.kind == "echo":
            raise Refused(fault.status, f"{fault.text}{dict(request.headers)}"[: fault.characters])
        if fault is not None and (response := await _fault_response(fault, body)) is not None:
            return response
        if settings.canned:
            answer, visual_tokens = CANNED_ANSWER, CANNED_PROMPT_TOKENS
        else:
            data = await asyncio.to_thread(_image_bytes, url, settings)
            images[hashlib.sha1(data, usedforsecurity=False).hexdigest()] += 1
            chinese = any("一" <= letter <= "鿿" for letter in _system_text(body) or text)
            answer, visual_tokens = await asyncio.to_thread(_look, data, settings.budget, chinese)
        finish_reason: str = "stop"
        if fault is not None and fault.kind in ("text", "reasoning"):
            answer, finish_reason = fault.text, fault.finish_reason
        elif fault is not None and fault.kind in ("abort", "length"):
            answer, finish_reason = answer[: len(answer) // 2], fault.kind
        elif fault is not None and fault.kind == "malformed":
            answer = "I am sorry, I cannot see any image here."
        prompt_tokens = visual_tokens + len(text) // TEXT_TOKEN_CHARACTERS
        if prompt_tokens > settings.max_model_len:
            raise Refused(400, f"This model's maximum context length is {settings.max_model_len} tokens.")
        tokens = max(1, len(answer) // TEXT_TOKEN_CHARACTERS)
        tokens = await engine.generate(prompt_tokens, tokens)
        engine.finished(finish_reason)
        completion = _completion(settings.model, answer, finish_reason, prompt_tokens, tokens)
        if fault is not None and fault.kind == "reasoning":  # a reasoning parser takes all of it
            completion["choices"][0]["message"] |= {"content": None, "reasoning": answer}
        return _json(completion)

    return app


CANNED_ANSWER = '{"rationale": "A red circle.", "objects": [{"bbox_2d": [28, 28, 196, 224], "label": "red circle"}]}'
CANNED_PROMPT_TOKENS = 1000


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _completion(model: str, text: str, finish_reason: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": f"chatcmpl-{time.monotonic_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens
        },
    }  # fmt: skip


def _body(raw: bytes, settings: Settings) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"JSON decode error: {error}") from None
    if body.get("model") != settings.model:
        raise Refused(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    response_format = body.get("response_format")
    if response_format is not None and not isinstance(response_format.get("json_schema", {}).get("schema"), dict):
        raise Refused(400, "response_format json_schema needs a schema")
    return dict(body)


def _user_content(body: dict[str, Any]) -> tuple[str, str]:
    """The texts and the image URL of the user's message."""
    parts = body["messages"][-1]["content"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    if len(urls) != 1:
        raise Refused(400, f"At most 1 image(s) may be provided in one prompt, got {len(urls)}.")
    return "\n".join(texts), urls[0]


def _system_text(body: dict[str, Any]) -> str:
    return "".join(str(message["content"]) for message in body["messages"] if message["role"] == "system")


def _image_bytes(url: str, settings: Settings) -> bytes:
    if url.startswith("data:"):
        try:
            return base64.b64decode(url.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise Refused(400, f"Failed to load image: {error}") from None
    if not url.startswith("file://"):
        raise Refused(400, f"unsupported image URL {url[:40]}")
    path = Path(unquote(urlsplit(url).path))
    allowed = settings.allowed_local_media_path
    if allowed is None or not path.resolve().is_relative_to(allowed.resolve()):
        raise Refused(400, f"The file path {path} must be a subpath of `--allowed-local-media-path`.")
    try:
        return path.read_bytes()
    except OSError as error:  # vLLM answers 500 here
        raise Refused(500, str(error), "InternalServerError") from None


def _look(data: bytes, budget: ImageBudget, chinese: bool) -> tuple[str, int]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            answer = describe(image, budget, chinese=chinese)
            return answer, image.width * image.height // (28 * 28)
    except OSError as error:
        raise Refused(400, f"Failed to load image: {error}") from None


def _next_fault(faults: deque[Fault], text: str) -> Fault | None:
    for fault in faults:
        if re.search(fault.match, text):
            if fault.count is not None:
                fault.count -= 1
                if fault.count <= 0:
                    faults.remove(fault)
            return fault
    return None


async def _fault_response(fault: Fault, body: dict[str, Any]) -> Response | None:
    """The response of a fault that replaces the answer; None for faults that change it."""
    if fault.kind == "crash":
        os._exit(1)
    if fault.kind == "stall":
        await asyncio.sleep(fault.seconds)
        return None
    if fault.kind == "reset":
        return StreamingResponse(_broken_off(), headers={"Content-Length": "1000"})
    if fault.kind == "firewall":  # of a gateway that dislikes the text
        return Response("<html><h1>403 Forbidden</h1></html>", 403, media_type="text/html")
    if fault.kind == "401":
        return _json({"error": "Unauthorized"}, 401)
    if fault.kind.isdigit():
        names = {"400": "BadRequestError", "404": "NotFoundError", "500": "InternalServerError"}
        raise Refused(int(fault.kind), f"stand-in fault {fault.kind}", names.get(fault.kind, "ServiceUnavailableError"))
    return None


async def _broken_off() -> AsyncIterator[bytes]:
    yield b'{"id": "chatcmpl-'
    raise ConnectionResetError("stand-in fault reset")
