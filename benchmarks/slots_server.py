"""A server of so many slots, each request holding one for a time that is drawn: what it was kept busy is known exactly.

`python -m benchmarks.slots_server PORT SLOTS SECONDS SIGMA STRAGGLERS`: a median of SECONDS, log-normal with SIGMA, and
a share of STRAGGLERS that take ten times as long. Lighter than the tests' stand-in, whose own cost would be measured.
"""

import asyncio
import math
import random
import sys
import time

from aiohttp import web

from benchmarks.canned_server import MODEL, canned_answer


class Slots:
    """The slots, and what they were busy with since the last look."""

    def __init__(self, slots: int, seconds: float, sigma: float, stragglers: float) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._times = random.Random(1)
        self._median, self._sigma, self._stragglers = seconds, sigma, stragglers
        self._answer = canned_answer().encode()
        self._busy = self._first = self._last = 0.0

    async def complete(self, request: web.Request) -> web.Response:
        """Reads a request, holds a slot, answers."""
        await request.read()
        self._first = self._first or time.monotonic()
        seconds = self._median * math.exp(self._times.gauss(0, self._sigma))
        seconds *= 10 if self._times.random() < self._stragglers else 1
        async with self._slots:
            begun = time.monotonic()
            await asyncio.sleep(seconds)
            self._last = time.monotonic()
        self._busy += self._last - begun
        return web.Response(body=self._answer, content_type="application/json")

    async def look(self, _: web.Request) -> web.Response:
        """Seconds that slots were held in all, and from the first request to the last answer; from nothing on."""
        seen = {"busy": self._busy, "seconds": self._last - self._first}
        self._busy = self._first = self._last = 0.0
        self._times = random.Random(1)  # every program gets the same ones
        return web.json_response(seen)


async def application(slots: int, seconds: float, sigma: float, stragglers: float) -> web.Application:
    """The server, made in its event loop."""
    server = Slots(slots, seconds, sigma, stragglers)
    models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    async def list_models(_: web.Request) -> web.Response:
        return web.json_response(models)

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_get("/health", healthy)
    app.router.add_get("/v1/models", list_models)
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get("/look", server.look)
    return app


if __name__ == "__main__":
    web.run_app(
        application(int(sys.argv[2]), *map(float, sys.argv[3:])),
        host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None,
    )  # fmt: skip
