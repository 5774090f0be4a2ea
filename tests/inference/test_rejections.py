"""A server that rejects every request, whatever the image."""

import asyncio
import re

import pytest

from stand_in.process import StandIn
from tests.inference.test_client import body, inference
from vllm_annotate.errors import ImageFailure, ServerRefused
from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.rejections import FIRST_FEW, remedy_for
from vllm_annotate.inference.responses import Completion


async def outcomes(client: Inference, count: int) -> list[Completion | BaseException]:
    return await asyncio.gather(*(client.ask(body(f"{n}")) for n in range(count)), return_exceptions=True)


async def test_the_first_few_rejections_stop_the_run_with_the_servers_words(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "400", "count": None})
    async with inference(stand_in.url, max_concurrency=4) as client:
        results = await outcomes(client, 100)
    failed = sum(isinstance(result, ImageFailure) for result in results)
    assert FIRST_FEW - 1 <= failed <= FIRST_FEW + 3
    refusals = [result for result in results if isinstance(result, ServerRefused)]
    assert len(refusals) == 100 - failed
    assert re.search(r"rejected the first 1\d images, last with HTTP 400: stand-in fault 400", str(refusals[0]))
    assert sum(stand_in.asked().values()) <= FIRST_FEW + 7


async def test_rejections_before_the_first_answer_stop_nothing_while_one_may_come() -> None:
    with StandIn.started("--canned", "--prefill-seconds", "1") as server:
        server.set_faults({"kind": "400", "count": None, "match": r"[1-9]"})
        async with inference(server.url, max_concurrency=40) as client:
            results = await outcomes(client, 40)
    assert isinstance(results[0], Completion)
    assert all(isinstance(result, ImageFailure) for result in results[1:])


async def test_rejections_after_an_answer_are_those_images_failures(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "400", "count": None, "match": r"[1-9]"})
    async with inference(stand_in.url, max_concurrency=1) as client:
        results = await outcomes(client, 40)
    assert sum(isinstance(result, ImageFailure) for result in results) == 39


async def test_answers_that_are_reasoning_only_name_the_reasoning_parser(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "reasoning", "count": None, "text": "A cat. {}"})
    async with inference(stand_in.url, max_concurrency=1) as client:
        first = await client.ask(body("first"))
        assert first.text == "<think>A cat. {}"
        results = await outcomes(client, 20)
    assert isinstance(results[-1], ServerRefused)
    assert "--reasoning-parser" in str(results[-1])


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("HTTP 400: System role not supported", "system_prompt"),
        ("HTTP 400: Conversation roles must alternate user/assistant/user/assistant/...", "system_prompt"),
        ("HTTP 400: At most 0 image(s) may be provided in one prompt.", "--limit-mm-per-prompt"),
        ("HTTP 400: google/gemma-3-1b-it is not a multimodal model", "takes images"),
        ("HTTP 400: This model's maximum context length is 512 tokens.", "--max-model-len"),
        ("HTTP 400: The prompt is longer than the maximum model length of 2048.", "--max-model-len"),
        ("HTTP 413: <html>413 Request Entity Too Large</html>", "client_max_body_size"),
        ("HTTP 307: redirects to http://elsewhere/v1", "--api-base"),
        ("HTTP 400: something else", "the server's log"),
    ],
)
def test_known_words_have_a_remedy(message: str, remedy: str) -> None:
    assert remedy in remedy_for(message)
