"""A server with a fixed number of slots, each busy for a random time per request, which measures how busy they are.

`python -m benchmarks.slots_server PORT SLOTS SECONDS SIGMA STRAGGLERS STAND_IN`: a median of SECONDS, log-normal with
SIGMA, and a share of STRAGGLERS that take ten times as long. Lighter than the stand-in, whose cost would distort the
result; STAND_IN is the URL of one, which answers the drawings by which a run proves what the server sees. These occupy
no slot. GET /look returns how busy the slots were since the last look.
"""

import asyncio
import math
import random
import sys
import time

from aiohttp import ClientSession, web

from benchmarks.canned_server import MODEL, canned_answer
from vllm_annotate.proof.scenes import MARKS


class Slots:
    """The slots, and how busy they were."""

    def __init__(self, slots: int, seconds: float, sigma: float, stragglers: float, looking: ClientSession) -> None:
        self._count, self._looking = slots, looking
        self._slots = asyncio.Semaphore(slots)
        self._median, self._sigma, self._stragglers = seconds, sigma, stragglers
        self._answer = canned_answer().encode()
        self._forget()

    def _forget(self) -> None:
        self._times = random.Random(1)  # the same for every program
        self._held = 0
        self._slot_seconds = 0.0  # until `_counted_at`
        self._first = self._counted_at = 0.0
        self._to_last_request = self._to_last_answer = 0.0

    def _count_to_now(self) -> float:
        """Adds the busy time since the last call; returns the busy share since the first request."""
        now = time.monotonic()
        self._first = self._first or now
        self._slot_seconds += self._held * (now - self._counted_at) if self._counted_at else 0
        self._counted_at = now
        return self._slot_seconds / self._count / (now - self._first or 1)

    async def complete(self, request: web.Request) -> web.Response:
        """Reads a request, occupies a slot, answers."""
        body = await request.read()
        if MARKS["en"].encode() in body:
            async with self._looking.post(
                request.path, data=body, headers={"Content-Type": "application/json"}
            ) as seen:
                return web.Response(body=await seen.read(), status=seen.status, content_type="application/json")
        self._to_last_request = self._count_to_now()
        seconds = self._median * math.exp(self._times.gauss(0, self._sigma))
        seconds *= 10 if self._times.random() < self._stragglers else 1
        async with self._slots:
            self._count_to_now()
            self._held += 1
            await asyncio.sleep(seconds)
            self._to_last_answer = self._count_to_now()
            self._held -= 1
        return web.Response(body=self._answer, content_type="application/json")

    async def look(self, _: web.Request) -> web.Response:
        """Returns the busy shares since the first request, then resets them."""
        seen = {"to_last_answer": self._to_last_answer, "to_last_request": self._to_last_request}
        self._forget()
        return web.json_response(seen)


async def application(slots: int, seconds: float, sigma: float, stragglers: float, *, stand_in: str) -> web.Application:
    """Creates the server in its event loop."""
    looking = ClientSession(stand_in)
    server = Slots(slots, seconds, sigma, stragglers, looking)
    models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    async def list_models(_: web.Request) -> web.Response:
        return web.json_response(models)

    async def close(_: web.Application) -> None:
        await looking.close()

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.on_cleanup.append(close)
    app.router.add_get("/health", healthy)
    app.router.add_get("/v1/models", list_models)
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get("/look", server.look)
    return app


if __name__ == "__main__":
    web.run_app(
        application(int(sys.argv[2]), *map(float, sys.argv[3:6]), stand_in=sys.argv[6]),
        host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None,
    )  # fmt: skip
