"""Requests prepared ahead of time."""

import asyncio
import base64
import gc
import os
import resource
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from PIL import Image

from vllm_annotate.errors import ImageFailure, MachineFault
from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.inference.pool import Pool
from vllm_annotate.inputs.rows import Row
from vllm_annotate.pipeline.preparation import AHEAD, LARGEST_GROUP, PendingRow, Preparation
from vllm_annotate.recipe.families import resolve_family
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe

SLOTS = 4


@pytest.fixture
def images(tmp_path: Path) -> Path:
    Image.new("RGB", (644, 476), "red").save(tmp_path / "as it is.jpg")
    Image.effect_noise((3000, 2000), 50).convert("RGB").save(tmp_path / "large.png", compress_level=1)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    return tmp_path


def rows(*names: str) -> deque[Row]:
    return deque(Row(name, f"caption of {name}", "{}") for name in names)


@asynccontextmanager
async def preparing(images: Path) -> AsyncIterator[Preparation]:
    recipe, family = Recipe(), resolve_family("auto", "qwen2.5-vl")
    async with Pool([Endpoint("http://127.0.0.1:9/v1", "none", 1, SLOTS)], SLOTS, 1, print) as pool:
        template = RequestTemplate(recipe, family, "qwen2.5-vl")
        preparation = Preparation(pool, recipe.image_budget(family), template)
        try:
            yield preparation
        finally:
            preparation.close()


async def group_sizes(preparation: Preparation, waiting: deque[Row], images: Path) -> list[int]:
    """The sizes of the groups; each is finished before the next starts."""
    sizes = []
    while waiting:
        group = await preparation.start(waiting, images)
        await asyncio.gather(*(pending.request() for pending in group))
        for _ in group:
            preparation.release()
        sizes.append(len(group))
    return sizes


async def test_images_that_need_no_change_are_prepared_together_and_large_ones_alone(images: Path) -> None:
    async with preparing(images) as preparation:
        assert max(await group_sizes(preparation, rows(*["as it is.jpg"] * 100), images)) == LARGEST_GROUP
        assert (await group_sizes(preparation, rows(*["large.png"] * 12), images))[-1] == 1
        assert preparation.prepared == 112


async def test_images_go_out_as_they_are_from_the_moment_that_this_is_known_to_be_safe(images: Path) -> None:
    Image.new("RGB", (640, 480), "red").save(images / "within.jpg")
    async with preparing(images) as preparation:
        for known, way in ((False, "jpeg"), (True, "original"), (False, "jpeg")):
            preparation.as_they_are = known
            (pending,) = await preparation.start(rows("within.jpg"), images)
            image, body = await pending.request()
            preparation.release()
            assert image.sent_as == way
            assert (base64.b64encode((images / "within.jpg").read_bytes()) in body) is known


async def test_a_corrupt_image_fails_alone(images: Path) -> None:
    async with preparing(images) as preparation:
        await group_sizes(preparation, rows(*["as it is.jpg"] * 50), images)
        group = await preparation.start(rows("as it is.jpg", "broken.jpg", "as it is.jpg", "gone.jpg"), images)
        results = await asyncio.gather(*(pending.request() for pending in group), return_exceptions=True)
        assert [type(result) for result in results] == [tuple, ImageFailure, tuple, ImageFailure]
        assert isinstance(results[0], tuple)
        assert b"caption of as it is.jpg" in results[0][1]


async def test_images_in_memory_are_bounded_by_the_limit_and_a_few_ahead(images: Path) -> None:
    async with preparing(images) as preparation:
        waiting, pending = rows(*["as it is.jpg"] * 100), list[PendingRow]()

        async def hand_out() -> None:
            while waiting:
                pending.extend(await preparation.start(waiting, images))

        feeding = asyncio.create_task(hand_out())
        await asyncio.sleep(0.3)
        while not feeding.done():
            assert SLOTS + AHEAD - LARGEST_GROUP < preparation.held == len(pending) <= SLOTS + AHEAD
            while pending:
                pending.pop()
                preparation.release()
            await asyncio.sleep(0.05)
        await feeding


async def test_a_corrupt_image_is_freed_with_its_error(images: Path) -> None:
    (images / "torn.jpg").write_bytes((images / "as it is.jpg").read_bytes()[:-500])
    async with preparing(images) as preparation:
        gc.collect()
        gc.disable()  # rare during a run
        try:
            (pending,) = await preparation.start(rows("torn.jpg"), images)
            try:
                await pending.request()
            except ImageFailure as failure:
                error = weakref.ref(failure)
            assert error() is None
        finally:
            gc.enable()


async def test_a_used_request_is_freed_before_the_rest_of_its_group(images: Path) -> None:
    async with preparing(images) as preparation:
        await group_sizes(preparation, rows(*["as it is.jpg"] * 50), images)
        group = await preparation.start(rows(*["as it is.jpg"] * 4), images)
        image = weakref.ref((await group[0].request())[0])
        gc.collect()
        assert image() is None
        assert (await group[1].request())[0].sent_width == 644


@contextmanager
def without_descriptors() -> Iterator[Callable[[], None]]:
    """This process may open no more files until the function is called."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1], limits[1]))

    def end() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    try:
        yield end
    finally:
        end()
        for descriptor in taken:
            os.close(descriptor)


async def test_a_lack_of_file_descriptors_that_lasts_is_the_machines_fault(images: Path) -> None:
    async with preparing(images) as preparation:
        with without_descriptors():
            (pending,) = await preparation.start(rows("as it is.jpg"), images)
            with pytest.raises(MachineFault, match=r"too many open files \(this process may open \d+\): raise"):
                await pending.request()


async def test_a_lack_of_file_descriptors_that_passes_costs_no_image(images: Path) -> None:
    async with preparing(images) as preparation:
        with without_descriptors() as end:
            (pending,) = await preparation.start(rows("as it is.jpg"), images)
            asyncio.get_running_loop().call_later(0.3, end)
            image, _ = await pending.request()
        assert image.sent_width == 644
