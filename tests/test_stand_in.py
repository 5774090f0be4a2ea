"""The stand-in: its shapes, batching, errors and metrics."""

import asyncio
import base64
import io
import json
import random
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from demo.scenes import FORMS, caption, draw_scene, truth
from demo.scoring import iou, score
from stand_in.answers import describe
from stand_in.process import StandIn
from stand_in.vision import find_shapes
from vllm_annotate.recipe.image_budget import ImageBudget


def chat(server: StandIn, image: Image.Image | str, text: str = "x", **changes: Any) -> dict[str, Any]:
    """One chat completion; raises HTTPError as urllib does."""
    url = image
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    body = {"model": "stand-in-qwen2.5-vl", "messages": [{"role": "user", "content": content}]} | changes
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return dict(json.load(response))


def error_of(server: StandIn, image: Image.Image | str, **changes: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        chat(server, image, **changes)
    with caught.value as error:
        return error.code, json.load(error)


def test_it_sees_shapes_exactly() -> None:
    rng = random.Random(11)
    pairs = []
    for _ in range(40):
        scene = draw_scene(rng, rng.randint(240, 1600), rng.randint(240, 1200), rng.randint(1, 4))
        width, height = scene.image.size
        found = [
            {
                "name": f"{shape.colour} {shape.form}",
                "bbox": [v / side * 1000 for v, side in zip(shape.box, (width, height) * 2, strict=True)],
            }
            for shape in find_shapes(scene.image)
        ]
        pairs.append((truth(scene), found))
    total = score(pairs)
    assert total.recall == 1.0
    assert total.mean_iou > 0.995


def test_it_answers_in_pixels_of_the_resized_image() -> None:
    scene = draw_scene(random.Random(2), 1000, 600, 1)
    small = ImageBudget(min_pixels=3136, max_pixels=200_000)
    answer = json.loads(describe(scene.image, small, chinese=False))
    box = answer["objects"][0]["bbox_2d"]
    resized = (560, 336)  # smart_resize of 1000 × 600 into 200,000 pixels
    expected = [v * to / side for v, to, side in zip(scene.shapes[0].box, resized * 2, (1000, 600) * 2, strict=True)]
    assert iou(box, expected) > 0.97


def test_a_caption_names_every_shape_once() -> None:
    scene = draw_scene(random.Random(4), 800, 600, 4)
    assert sum(caption(scene, chinese=False).count(form) for form in FORMS) == 4
    assert len({shape.colour for shape in scene.shapes}) == 4


def test_it_identifies_itself_as_a_stand_in(stand_in: StandIn) -> None:
    with urllib.request.urlopen(f"{stand_in.url}/version") as response:
        version = json.load(response)
    assert version["stand_in"] is True
    assert "not a model" in version["note"]


def test_errors_have_vllms_bodies(stand_in: StandIn) -> None:
    white = Image.new("RGB", (56, 56), "white")
    assert error_of(stand_in, white, model="other") == (
        404,
        {
            "error": {
                "message": "The model `other` does not exist.",
                "type": "NotFoundError",
                "param": None,
                "code": 404,
            }
        },
    )
    code, body = error_of(stand_in, "data:image/jpeg;base64,AAAA")
    assert (code, body["error"]["message"][:21]) == (400, "Failed to load image:")
    code, body = error_of(stand_in, "file:///etc/hostname")
    assert code == 400
    assert "--allowed-local-media-path" in body["error"]["message"]
    code, body = error_of(stand_in, white, text="word " * 10_000)
    assert "maximum context length" in body["error"]["message"]
    stand_in.set_faults({"kind": "503"})
    assert error_of(stand_in, white)[0] == 503


async def test_slots_bound_running_requests_and_the_rest_queues() -> None:
    with StandIn.started("--slots", "4", "--prefill-seconds", "0.5") as server:
        white = Image.new("RGB", (56, 56), "white")
        started = time.monotonic()
        requests = [asyncio.create_task(asyncio.to_thread(chat, server, white)) for _ in range(6)]
        await asyncio.sleep(0.25)
        running = metrics(server)
        await asyncio.gather(*requests)
        assert time.monotonic() - started >= 1.0
    assert running["vllm:num_requests_running"] == 4
    assert running["vllm:num_requests_waiting"] == 2
    assert running["vllm:kv_cache_usage_perc"] > 0


def test_metrics_have_vllms_names_and_count_from_the_start() -> None:
    with StandIn.started() as server:
        chat(server, Image.new("RGB", (56, 56), "white"))
        values = metrics(server)
    assert values["vllm:generation_tokens_total"] > 0
    assert values["vllm:prompt_tokens_total"] > 0
    assert values["vllm:request_success_total"] == 1
    assert values["vllm:e2e_request_latency_seconds_count"] == 1
    assert values["vllm:num_preemptions_total"] == 0


def metrics(server: StandIn) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
        return {sample.name: sample.value for family in families for sample in family.samples}
