"""Prepares requests ahead of time: reads, checks and resizes images in threads, with a bound on images in memory."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from vllm_annotate.cores import usable_cores
from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.files import close_folders
from vllm_annotate.images.prepare import PreparedImage, prepare
from vllm_annotate.inference.pool import Pool
from vllm_annotate.inputs.rows import Row
from vllm_annotate.recipe.image_budget import ImageBudget
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.storage.image_roots import ImageRoot
from vllm_annotate.storage.locations import READERS
from vllm_annotate.storage.shortage import patiently

Result = TypeVar("Result")
Request = tuple[PreparedImage, bytes]  # the image and the body that carries it

AHEAD = 16  # requests prepared beyond the limit; at least LARGEST_GROUP, or a group would never fit
# Thread and event loop contend for the GIL at every system call, which costs more than preparing an image that needs no
# change. Such images are prepared in groups; one that takes GROUP_SECONDS is prepared alone.
LARGEST_GROUP = 8
GROUP_SECONDS = 0.02


@dataclass(frozen=True)
class PendingRow:
    """A row whose request is being prepared."""

    row: Row
    _group: asyncio.Future[list[Request | Exception | None]]
    _place: int

    async def request(self) -> Request:
        """Waits for the request; call it once. Raises the error of its preparation."""
        requests = await self._group
        request, requests[self._place] = requests[self._place], None  # frees its bytes early
        try:
            if isinstance(request, Exception):
                raise request
            assert request is not None  # noqa: S101 - for the type checker
            return request
        finally:
            del request  # an error referenced by its own frame would keep the image until garbage collection


class Preparation:
    """The image threads of a run, with a bound on images in memory. Bound to one event loop."""

    def __init__(
        self,
        pool: Pool,
        budget: ImageBudget,
        template: RequestTemplate,
        *,
        is_remote: bool = False,
    ) -> None:
        """Reads images that are on this machine, or with `is_remote` in an object store."""
        self.held = 0  # rows started and not released, each with its image in memory
        self.preparing = 0  # of these: being prepared, or waiting for a thread
        self.prepared = 0  # images so far
        self.seconds = 0.0  # total thread time for these
        # JPEGs within the budget keep their size. Only for a server that is known to resize as the recipe does; may
        # change during a run.
        self.as_they_are = False
        self._pool = pool
        self._budget = budget
        self._template = template
        self._room = asyncio.Event()  # set when there may be room
        pool.on_room = self._room.set
        self._seconds_each = GROUP_SECONDS  # moving average
        threads = READERS if is_remote else usable_cores()
        close_folders()  # the image root may be a link that led elsewhere in an earlier run
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="prepare")

    def close(self) -> None:
        """Stops the threads; cancels queued work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        close_folders()

    async def start(self, rows: deque[Row], image_root: ImageRoot) -> list[PendingRow]:
        """Takes rows from the left once there is room. Call `release` for each when it is done."""
        count = min(len(rows), max(1, min(LARGEST_GROUP, int(GROUP_SECONDS / self._seconds_each))))
        # Without this bound, every row of a chunk would hold its JPEG while it waits for a slot.
        while self.held + count > self._pool.limit + AHEAD:
            self._room.clear()
            await self._room.wait()
        group = [rows.popleft() for _ in range(count)]
        self.held += count
        self.preparing += count
        requests = asyncio.ensure_future(self._prepare(group, image_root))
        return [PendingRow(row, requests, place) for place, row in enumerate(group)]

    def release(self, *_: Any) -> None:
        """Frees the place of one row."""
        self.held -= 1
        self._room.set()

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Runs a function in a thread and returns its result."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _prepare(self, group: Sequence[Row], image_root: ImageRoot) -> list[Request | Exception | None]:
        try:
            requests, seconds = await self.in_thread(self._requests, group, image_root)
        finally:
            self.preparing -= len(group)
        self.prepared += len(group)
        self.seconds += seconds
        self._seconds_each = 0.8 * self._seconds_each + 0.2 * seconds / len(group)
        return requests

    def _requests(self, group: Sequence[Row], image_root: ImageRoot) -> tuple[list[Request | Exception | None], float]:
        started = time.perf_counter()
        requests: list[Request | Exception | None] = [self._request(row, image_root) for row in group]
        return requests, time.perf_counter() - started

    def _request(self, row: Row, image_root: ImageRoot) -> Request | Exception:
        try:
            return patiently(partial(self._prepared, row, image_root))
        except MemoryError:
            return ImageFailure(
                "too_large",
                f"{row.image_path!r:.300} needs more memory than this process may use: shrink the image, or raise the "
                "memory limit (ulimit -v)",
            )
        except Exception as error:  # raised by `PendingRow.request`
            return error

    def _prepared(self, row: Row, image_root: ImageRoot) -> Request:
        image = prepare(image_root, row.image_path, self._budget, as_they_are=self.as_they_are)
        return image, self._template.body(row.caption, image.url())
