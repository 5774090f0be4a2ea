"""One image from its row to its line: prepared off the loop, asked, grounded, kept."""

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.errors import ErrorBudgetExceeded, ImageFailure, UnparsableAnswer
from flows.grounding import is_clean, parse_answer
from flows.images import PreparedImage, prepare
from flows.inference import Inference
from flows.recipe import Recipe, request_body
from flows.store import Part, Row, answer_line

PREPARED_AHEAD = 16  # requests ready before a slot frees
BUDGET_FREE_FAILURES = 10  # a chunk of five images with three broken files is no sign of a broken server
RATE_WINDOW_SECONDS = 30


@dataclass
class Tally:
    """What a run has done so far, over all its chunks."""

    settled_before: int = 0  # images of the plan that an interrupted run had brought to an answer or a failure
    answered: int = 0
    annotations_error: int = 0
    objects: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque([(time.monotonic(), 0)]))

    @property
    def failed(self) -> int:
        """Images without an answer."""
        return self.failures.total()

    @property
    def done(self) -> int:
        """Images with an answer or a failure, of this run or an interrupted one."""
        return self.settled_before + self.answered + self.failed

    def images_per_second(self) -> float:
        """The rate of the last half minute, by the calls of this method."""
        now, done = time.monotonic(), self.answered + self.failed
        self._recent.append((now, done))
        while now - self._recent[0][0] > RATE_WINDOW_SECONDS:
            self._recent.popleft()
        since, done_then = self._recent[0]
        return (done - done_then) / (now - since) if now > since else 0.0


class Annotator:
    """What all chunks of a run share: client, recipe, image threads, tally. An async context manager."""

    def __init__(self, inference: Inference, recipe: Recipe, model: str, image_root: Path, error_budget: float) -> None:
        self.tally = Tally()
        self._inference = inference
        self._recipe = recipe
        self._model = model
        self._image_root = image_root
        self._error_budget = error_budget
        # Bounds the images in memory; without it every row of a live chunk would hold its JPEG while it waits.
        self._held = asyncio.Semaphore(inference.max_concurrency + PREPARED_AHEAD)
        self._feeding = asyncio.Lock()  # chunks hand out their rows one after the other, in input order
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="prepare")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered."""
        return self._inference.in_flight

    async def annotate(self, rows: Sequence[Row], part: Part) -> None:
        """Brings every row into the part, as an answer or as a failure.

        Raises ServerFault when the server is gone or refuses, ErrorBudgetExceeded when too many of the rows fail; what
        was answered until then is in the part.
        """
        # A budget of nothing is meant so.
        failures_allowed = self._error_budget and max(BUDGET_FREE_FAILURES, self._error_budget * len(rows))
        failed: Counter[str] = Counter()

        async def settle(row: Row) -> None:
            try:
                await self._answer(row, part)
            except ImageFailure as failure:
                part.fail(row, failure)
                self.tally.failures[failure.kind] += 1
                failed[failure.kind] += 1
                if failed.total() > failures_allowed:
                    kinds = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
                    raise ErrorBudgetExceeded(
                        f"{failed.total()} of {len(rows)} images failed ({kinds}), more than the error budget "
                        f"{self._error_budget:g} allows; the last one: {failure.message}"
                    ) from None

        try:
            async with asyncio.TaskGroup() as group, self._feeding:
                for row in rows:
                    await self._held.acquire()
                    # A callback, not a finally in the task: a task cancelled before its first step runs no finally.
                    group.create_task(settle(row)).add_done_callback(lambda _: self._held.release())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _answer(self, row: Row, part: Part) -> None:
        image, body = await asyncio.get_running_loop().run_in_executor(self._threads, self._prepare, row)
        completion = await self._inference.ask(body)
        parsed = await self._read(completion.text, image)
        part.answer(row, answer_line(row, image, completion.text, parsed))
        self.tally.answered += 1
        self.tally.objects += len(parsed["objects"])
        self.tally.prompt_tokens += completion.prompt_tokens
        self.tally.completion_tokens += completion.completion_tokens

    def _prepare(self, row: Row) -> tuple[PreparedImage, bytes]:
        image = prepare(self._image_root, row.image_path, self._recipe.image_budget)
        return image, request_body(self._recipe, self._model, row.caption, image)

    async def _read(self, text: str, image: PreparedImage) -> dict[str, Any]:
        """The fields that an answer adds to its row; a text without an annotation is kept as it is."""
        try:
            # Mending can take seconds, which no other request should wait for; clean answers take microseconds.
            if is_clean(text):
                annotation = parse_answer(text, image.sent_width, image.sent_height)
            else:
                annotation = await asyncio.to_thread(parse_answer, text, image.sent_width, image.sent_height)
        except UnparsableAnswer:
            self.tally.annotations_error += 1
            return {"annotations": None, "objects": [], "annotations_error": True}
        self.tally.flags.update(annotation.flags)
        parsed = {
            "annotations": {"rationale": annotation.rationale, "objects": annotation.objects},
            "objects": annotation.objects,
        }
        return parsed | ({"flags": annotation.flags} if annotation.flags else {})
