"""Canaries: scenes asked about during a run, to notice a server whose boxes go wrong."""

import asyncio
from itertools import cycle

from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.inference.pool import Pool
from vllm_annotate.proof.pointing import GOOD_FIT
from vllm_annotate.proof.prove import Prover
from vllm_annotate.proof.scenes import Kind, space_of

FIRST_AFTER = 100  # answers of an endpoint
MORE = 2  # after a wrong one: two wrong ones of the three decide
SMALL, LARGE = Kind(1, 0.3), Kind(1, 1.0)  # in turn: what a server does to large images shows in no other


class CanaryWatch:
    """Asks each endpoint about a fresh scene from time to time, if its boxes were proven."""

    def __init__(self, prover: Prover, pool: Pool, every: int) -> None:
        """`every` is the number of answers between two canaries, 0 for none."""
        self._prover, self._pool, self._every = prover, pool, every
        self._due: dict[str, int] = {}  # answers of an endpoint at its next canary, by URL
        self._right_at: dict[str, int] = {}  # answers at the last canary that was right
        self._kinds = cycle((LARGE, SMALL))
        self._tasks: dict[str, asyncio.Task[None]] = {}  # under way, by URL

    def proven(self, endpoint: Endpoint) -> None:
        """Takes note of a proof; call it for each."""
        self._right_at[endpoint.url] = endpoint.answered
        self._due[endpoint.url] = endpoint.answered + min(FIRST_AFTER, self._every)

    def answered(self, endpoint: Endpoint) -> None:
        """Takes note of an answer; call it for each."""
        url = endpoint.url
        if not self._every or endpoint.answered < self._due.get(url, 0) or url in self._tasks:
            return
        self._due[url] = endpoint.answered + self._every
        finding = self._prover.findings.get(url)
        if finding is not None and finding.points.steady:
            self._tasks[url] = asyncio.create_task(self._check(endpoint))
            self._tasks[url].add_done_callback(lambda _: self._tasks.pop(url))

    async def close(self) -> None:
        """Ends those under way."""
        under_way = list(self._tasks.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _check(self, endpoint: Endpoint) -> None:
        asked_at, kind = endpoint.answered, next(self._kinds)
        right = await self._is_right(endpoint, kind)
        if right is False:
            others = await asyncio.gather(*(self._is_right(endpoint, kind) for _ in range(MORE)))
            if False in others:
                self._fail(endpoint)
                return
        if right is not None:
            self._right_at[endpoint.url] = asked_at

    async def _is_right(self, endpoint: Endpoint, kind: Kind) -> bool | None:
        """Whether the boxes for a fresh scene are right; None if there is no answer."""
        questions, finding = self._prover.questions, self._prover.findings[endpoint.url]
        answer = await questions.about(kind, self._prover.asker(endpoint), finding.sees)
        if isinstance(answer, str):
            return None
        scene, text = answer
        right = scene.fits(text, questions.family)[space_of(questions.family)] >= GOOD_FIT
        finding.canaries.asked += 1
        finding.canaries.wrong += not right
        return right

    def _fail(self, endpoint: Endpoint) -> None:
        """Takes the endpoint down; it comes back if it is proven again."""
        doubtful = endpoint.answered + endpoint.in_flight - self._right_at[endpoint.url]
        self._prover.findings[endpoint.url].canaries.in_doubt += doubtful
        why = f"its boxes are wrong: they missed drawn shapes; its last {doubtful} answers are in doubt"
        self._pool.take_down(endpoint, why)
