"""The HTTP interface of the stand-in: vLLM's endpoints and error bodies, and controls for tests."""

import asyncio
import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from PIL import Image

from stand_in.answers import CANNED, See, describe
from stand_in.asked import Asked
from stand_in.batching import Engine, Timing
from stand_in.faults import SHIFT, Fault, Faults
from stand_in.processor import Processor
from stand_in.prompts import TOKEN_CHARACTERS, Prompt, image_bytes, read_prompt
from stand_in.responses import Refused, as_json, completion
from stand_in.unsure import unsure
from stand_in.vision import find_shapes
from vllm_annotate.errors import ImageFailure
from vllm_annotate.proof.drawings import Shape
from vllm_annotate.recipe.families import FAMILIES

VERSION = "0.32.0"  # of the vLLM whose interface this is
CANNED_VISUAL_TOKENS = 1000


@dataclass
class Settings:
    """Settings of the stand-in; names follow `vllm serve`."""

    model: str = "stand-in-qwen2.5-vl"
    family: str = "qwen2.5-vl"  # in whose space and keys it answers
    api_key: str | None = None
    max_model_len: int = 8192
    min_visual_tokens: int = Processor.min_visual_tokens
    max_visual_tokens: int = Processor.max_visual_tokens
    timing: Timing = field(default_factory=Timing)
    canned: bool = False  # the same answer for every image of the input, for measuring clients
    metrics: bool = True
    usage: bool = True
    faults: list[Fault] = field(default_factory=list)  # of the first requests

    @property
    def processor(self) -> Processor:
        """The image processor."""
        return Processor(FAMILIES[self.family], self.min_visual_tokens, self.max_visual_tokens)


def create_app(settings: Settings) -> FastAPI:
    """The stand-in as an ASGI application."""
    app = FastAPI()
    engine = Engine(settings.timing, settings.model)
    asked = Asked()

    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Refused) -> Response:
        return error.response()

    @app.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Any:
        wanted = settings.api_key and request.url.path.startswith("/v1")
        if wanted and request.headers.get("authorization") != f"Bearer {settings.api_key}":
            return as_json({"error": "Unauthorized"}, 401)
        return await call_next(request)

    _add_state(app, settings, engine)
    _add_chat(app, settings, engine, asked)
    return app


def _add_state(app: FastAPI, settings: Settings, engine: Engine) -> None:
    """Adds what tells of the server."""

    @app.get("/health")
    @app.get("/ping")
    async def health() -> Response:
        return Response()

    @app.get("/version")
    async def version() -> dict[str, Any]:
        return {"version": VERSION, "stand_in": True, "note": "a stand-in for vLLM, not a model"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": settings.model, "object": "model", "owned_by": "stand-in", "root": f"/models/{settings.model}"}
        return {"object": "list", "data": [model | {"max_model_len": settings.max_model_len}]}

    @app.get("/metrics")
    async def metrics() -> Response:
        if not settings.metrics:
            return as_json({"detail": "Not Found"}, 404)
        return Response(engine.metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/load")
    async def load() -> dict[str, int]:
        return {"server_load": engine.load}


def _add_chat(app: FastAPI, settings: Settings, engine: Engine, asked: Asked) -> None:
    """Adds chat completions, with their faults and counts."""
    faults = Faults(settings.faults)

    @app.post("/stand_in/faults")
    async def set_faults(new: list[Fault]) -> None:
        nonlocal faults
        faults = Faults(new)

    @app.get("/stand_in/asked")
    async def get_asked() -> dict[str, Any]:
        return asked.counts() | {"most_at_once": engine.most_at_once}

    @app.delete("/stand_in/asked")
    async def forget_asked() -> None:
        asked.forget()
        engine.most_at_once = 0

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        prompt = read_prompt(await request.body(), settings.model, settings.max_model_len)
        asked.count(prompt)
        fault = faults.next_for(prompt)
        if fault is not None and (response := await fault.response(dict(request.headers))) is not None:
            return response
        answer, visual_tokens = await _answer(prompt, settings, asked, fault)
        finish_reason = "stop"
        if fault is not None:
            answer, finish_reason = fault.change(answer, finish_reason)
        if len(answer) > prompt.max_tokens * TOKEN_CHARACTERS:
            answer, finish_reason = answer[: prompt.max_tokens * TOKEN_CHARACTERS], "length"
        prompt_tokens = visual_tokens + prompt.text_tokens
        if prompt_tokens > settings.max_model_len:
            raise Refused(400, f"This model's maximum context length is {settings.max_model_len} tokens.")
        tokens = await engine.generate(
            prompt_tokens, len(answer) // TOKEN_CHARACTERS, prompt.max_tokens, is_proof=prompt.is_proof
        )
        engine.finished(finish_reason)
        usage = (prompt_tokens, tokens) if settings.usage else None
        body = completion(settings.model, answer, finish_reason, usage)
        if fault is not None and fault.kind == "reasoning":  # a reasoning parser takes all of it
            body["choices"][0]["message"] |= {"content": None, "reasoning": answer}
        return as_json(body)


async def _answer(prompt: Prompt, settings: Settings, asked: Asked, fault: Fault | None) -> tuple[str, int]:
    """The answer of a prompt, and the tokens of its image."""
    if not prompt.url:
        return "There is no image.", 0
    if settings.canned and not prompt.is_proof:
        return CANNED, CANNED_VISUAL_TOKENS
    data = await asyncio.to_thread(image_bytes, prompt.url)
    if not prompt.is_proof:
        asked.images[hashlib.sha1(data, usedforsecurity=False).hexdigest()] += 1
    shift = SHIFT if fault is not None and fault.kind == "shift" else 0.0
    see: See = find_shapes
    if fault is not None and fault.kind == "unsure":
        seed, asked_with = fault.seed, prompt.seed

        def see(image: Image.Image) -> list[Shape]:
            return unsure(find_shapes(image), data, image.size, seed, asked_with)

    return await asyncio.to_thread(_look, data, settings.processor, chinese=prompt.is_chinese, shift=shift, see=see)


def _look(data: bytes, processor: Processor, *, chinese: bool, shift: float, see: See) -> tuple[str, int]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            answer = describe(image, processor, chinese=chinese, shift=shift, see=see)
            return answer, processor.tokens(image.width, image.height)
    except (OSError, ImageFailure) as error:
        raise Refused(400, f"Failed to load image: {error}") from None
