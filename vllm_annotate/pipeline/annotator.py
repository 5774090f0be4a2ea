"""Takes images from input row to output line: prepare, request, parse, save."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vllm_annotate.errors import ImageFailure
from vllm_annotate.grounding.answers import Answer, answer_fields, read_answer
from vllm_annotate.grounding.parse import is_clean
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.responses import Completion
from vllm_annotate.inputs.rows import Row
from vllm_annotate.pipeline.error_budget import ErrorBudget
from vllm_annotate.pipeline.preparation import PendingRow, Preparation
from vllm_annotate.recipe.families import Family
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.results.lines import answer_line
from vllm_annotate.results.parts import Part
from vllm_annotate.storage.disk_errors import stops_the_run
from vllm_annotate.storage.image_roots import ImageRoot

CHUNKS_AHEAD = 2  # started chunks with rows left to submit: keeps requests coming at the end of a chunk
RATE_WINDOW_SECONDS = 30
MOST_TIMES = 20_000  # 2 MiB


@dataclass
class Tally:
    """The counts of a run so far, over all chunks."""

    settled_before: int = 0  # images of the plan with an answer or failure from an interrupted run
    answered: int = 0
    without_caption: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    sent: Counter[str] = field(default_factory=Counter)  # images, by how they were sent
    failures: Counter[str] = field(default_factory=Counter)
    # The newest images: when each was done, and its prompt and completion tokens.
    done_at: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=MOST_TIMES))
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque([(time.monotonic(), 0)]))

    @property
    def failed(self) -> int:
        """Images without an answer."""
        return self.failures.total()

    @property
    def done(self) -> int:
        """Images with an answer or a failure, from this run or an interrupted one."""
        return self.settled_before + self.answered + self.failed

    def images_per_second(self) -> float:
        """The rate since the oldest call within the last 30 seconds."""
        now, done = time.monotonic(), self.answered + self.failed
        self._recent.append((now, done))
        while now - self._recent[0][0] > RATE_WINDOW_SECONDS:
            self._recent.popleft()
        since, done_then = self._recent[0]
        return (done - done_then) / (now - since) if now > since else 0.0


class Annotator:
    """The parts of a run that all chunks share: client, recipe, image preparation, tally. An async context manager."""

    def __init__(
        self,
        inference: Inference,
        recipe: Recipe,
        family: Family,
        model: str,
        error_budget: float,
        *,
        is_remote: bool = False,
    ) -> None:
        self.tally = Tally()
        self.pool = inference.pool
        self._inference = inference
        self._recipe = recipe
        self._family = family
        self._requests = [RequestTemplate(recipe, family, model, attempt) for attempt in range(1, recipe.reasks + 2)]
        self._error_budget = ErrorBudget(error_budget)
        self.preparation = Preparation(self.pool, recipe.image_budget(family), self._requests[0], is_remote=is_remote)
        self._fatal: BaseException | None = None  # stops every chunk
        self._stopped = asyncio.Event()
        self._feeding = asyncio.Lock()  # chunks submit their rows one after the other, in input order
        self._turns = asyncio.Semaphore(CHUNKS_AHEAD)
        self._having_turn: set[Path] = set()  # parts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.preparation.close()

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet answered."""
        return self.pool.in_flight

    def endpoint_counts(self) -> dict[str, dict[str, Any]]:
        """Counts per endpoint; see `Inference.counts`."""
        return self._inference.counts()

    async def turn(self, part: Path) -> None:
        """Waits until the rows of a chunk are needed soon: at most one earlier chunk still has rows to submit."""
        await self._turns.acquire()
        self._having_turn.add(part)

    def end_turn(self, part: Path) -> None:
        """Lets the next chunk start: this one has no more rows to submit."""
        if part in self._having_turn:
            self._having_turn.remove(part)
            self._turns.release()

    def stop(self, error: BaseException) -> None:
        """Stops all chunks at once, with an error that would hit each of them."""
        self._fatal = error
        self._stopped.set()

    @asynccontextmanager
    async def _unless_stopped(self) -> AsyncIterator[None]:
        """Raises the error of `stop` inside the body."""

        async def watch() -> None:
            await self._stopped.wait()
            assert self._fatal is not None  # noqa: S101 - for the type checker
            raise self._fatal

        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch())
                yield
                watching.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def annotate(self, rows: Sequence[Row], part: Part, image_root: ImageRoot) -> None:
        """Annotates the rows and writes each to the part, as an answer or a failure.

        Raises ServerFault if the server is gone or refuses, ErrorBudgetExceeded if too many rows fail, and OSError, in
        all chunks, if the disk is full or the machine is at fault. Answers up to then are in the part.
        """

        async def settle(pending: PendingRow) -> None:
            try:
                failure = await self._settle(pending, part)
            except OSError as error:
                if stops_the_run(error):
                    self.stop(error)
                raise
            if failure is None:
                self._error_budget.answered()
            else:
                self._error_budget.failed(failure, len(rows))

        waiting = deque(rows)
        async with self._unless_stopped():
            try:
                async with asyncio.TaskGroup() as group:
                    async with self._feeding:
                        while waiting:
                            for pending in await self.preparation.start(waiting, image_root):
                                # A callback, as a task that is cancelled before its first step runs no finally.
                                group.create_task(settle(pending)).add_done_callback(self.preparation.release)
                    self.end_turn(part.path)
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _settle(self, pending: PendingRow, part: Part) -> ImageFailure | None:
        """Writes a row's answer or failure to the part; returns the failure."""
        try:
            await self._answer(pending, part)
        except ImageFailure as failure:
            part.fail(pending.row, failure)
            self.tally.failures[failure.kind] += 1
            return failure
        return None

    async def _answer(self, pending: PendingRow, part: Part) -> None:
        row = pending.row
        image, body = await pending.request()
        self.tally.sent[image.sent_as] += 1
        used: list[Completion] = []
        best, attempt = await self._try(body, image, used), 1
        while not best.is_good and attempt <= self._recipe.reasks:
            attempt += 1
            body = await self.preparation.in_thread(self._body, attempt, row.caption, image)
            best = max(best, await self._try(body, image, used), key=Answer.rank)
        if best.annotation is None and not best.whole:
            message = f"{attempt} answers reached max_tokens or looped; the best starts with {best.text[:80]!r}"
            raise ImageFailure("truncated", message, attempt)
        part.answer(row, answer_line(row, image, best.text, answer_fields(best, attempt)))
        self.tally.answered += 1
        tokens = (sum(one.prompt_tokens for one in used), sum(one.completion_tokens for one in used))
        self.tally.done_at.append((time.monotonic(), *tokens))
        self.tally.without_caption += not row.caption

    def _body(self, attempt: int, caption: str, image: PreparedImage) -> bytes:
        return self._requests[attempt - 1].body(caption, image.url())

    async def _try(self, body: bytes, image: PreparedImage, used: list[Completion]) -> Answer:
        completion = await self._inference.ask(body)
        used.append(completion)
        self.tally.prompt_tokens += completion.prompt_tokens
        self.tally.completion_tokens += completion.completion_tokens
        size, whole = (image.sent_width, image.sent_height), completion.finish_reason == "stop"
        read = partial(read_answer, completion.text, self._family, size, whole=whole)
        # Repairing an answer can take seconds, too long for the event loop; a clean one takes microseconds.
        return read() if is_clean(completion.text) else await self.preparation.in_thread(read)
