"""Canaries: scenes asked about during a run, to notice a server whose boxes go wrong."""

import asyncio
from collections.abc import Callable

from vllm_annotate.errors import ServerRefused
from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.inference.pool import REST_SECONDS, Pool
from vllm_annotate.proof.pointing import GOOD_FIT
from vllm_annotate.proof.prove import Prover
from vllm_annotate.proof.scenes import space_of

FIRST_AFTER = 100  # answers of an endpoint
MORE = 2  # after a wrong one; most of all decide


class CanaryWatch:
    """Asks each endpoint about a fresh scene from time to time, if its boxes were proven."""

    def __init__(self, prover: Prover, pool: Pool, every: int, stop: Callable[[BaseException], None]) -> None:
        """`every` is the number of answers between two canaries, 0 for none."""
        self._prover, self._pool, self._every, self._stop = prover, pool, every, stop
        self._due: dict[str, int] = {}  # answers of an endpoint at its next canary, by URL
        self._right_at: dict[str, int] = {}  # answers at the last canary that was right
        self._wrong: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def answered(self, endpoint: Endpoint) -> None:
        """Takes note of an answer; call it for each."""
        if not self._every or endpoint.answered < self._due.setdefault(endpoint.url, min(FIRST_AFTER, self._every)):
            return
        self._due[endpoint.url] = endpoint.answered + self._every
        finding = self._prover.findings.get(endpoint.url)
        if finding is not None and finding.points.steady:
            task = asyncio.create_task(self._check(endpoint))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends those under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _check(self, endpoint: Endpoint) -> None:
        asked_at = endpoint.answered
        right = await self._is_right(endpoint)
        if right is False:
            others = await asyncio.gather(*(self._is_right(endpoint) for _ in range(MORE)))
            if others.count(False) * 2 >= MORE:
                self._fail(endpoint)
                return
        if right is not None:
            self._right_at[endpoint.url] = asked_at

    async def _is_right(self, endpoint: Endpoint) -> bool | None:
        """Whether the boxes for a fresh scene are right; None if there is no answer."""
        questions, finding = self._prover.questions, self._prover.findings[endpoint.url]
        answer = await questions.about(1, self._prover.asker(endpoint), finding.sees)
        if isinstance(answer, str):
            return None
        scene, text = answer
        right = scene.fits(text, questions.family)[space_of(questions.family)] >= GOOD_FIT
        finding.canaries.asked += 1
        finding.canaries.wrong += not right
        return right

    def _fail(self, endpoint: Endpoint) -> None:
        doubtful = endpoint.answered + endpoint.in_flight - self._right_at.get(endpoint.url, 0)
        self._prover.findings[endpoint.url].canaries.in_doubt += doubtful
        why = f"its boxes are wrong: they missed drawn shapes; its last {doubtful} answers are in doubt"
        self._wrong.add(endpoint.url)
        if self._wrong >= {one.url for one in self._pool.endpoints}:
            self._stop(ServerRefused(f"{endpoint.url}: {why}; check the server, and run again"))
        self._pool.take_down(endpoint, why, REST_SECONDS)

    def is_right_again(self, endpoint: Endpoint) -> None:
        """Takes note that the endpoint was proven anew."""
        self._wrong.discard(endpoint.url)
        self._right_at[endpoint.url] = endpoint.answered
        self._due[endpoint.url] = endpoint.answered + self._every
