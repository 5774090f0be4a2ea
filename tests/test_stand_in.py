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
from hypothesis import assume, given, settings
from hypothesis.strategies import integers, sampled_from
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from demo.scenes import caption, draw_scene, truth
from demo.scoring import iou, score
from stand_in.answers import describe
from stand_in.process import StandIn
from stand_in.processor import Processor
from stand_in.vision import find_shapes
from vllm_annotate.grounding.answers import read_answer
from vllm_annotate.images.prepare import smart_resize
from vllm_annotate.proof.drawings import COLOURS, FORMS
from vllm_annotate.recipe.families import FAMILIES, Family
from vllm_annotate.recipe.image_budget import ImageBudget


def chat(server: StandIn, image: Image.Image | str | None, text: str = "x", **changes: Any) -> dict[str, Any]:
    """One chat completion; raises HTTPError as urllib does."""
    url = image
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    shown = [{"type": "image_url", "image_url": {"url": url}}] if image else []
    content = [*shown, {"type": "text", "text": text}]
    body = {"model": "stand-in-qwen2.5-vl", "messages": [{"role": "user", "content": content}]} | changes
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return dict(json.load(response))


def text_of(completion: dict[str, Any]) -> str:
    return str(completion["choices"][0]["message"]["content"])


def boxes_of(completion: dict[str, Any]) -> list[list[float]]:
    """The boxes of an answer as they are written, under whatever key."""
    objects = json.loads(text_of(completion))["objects"]
    return [value for item in objects for value in item.values() if isinstance(value, list)]


def prompt_tokens(completion: dict[str, Any]) -> int:
    return int(completion["usage"]["prompt_tokens"])


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


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_its_boxes_read_in_the_space_of_their_family_are_the_drawn_ones(family: Family, chinese: bool) -> None:
    for width, height in ((1000, 600), (333, 1200), (250, 240), (2400, 1000)):
        scene = draw_scene(random.Random(width), width, height, 4)
        processor = Processor(family, max_visual_tokens=1280)
        answer = read_answer(
            describe(scene.image, processor, chinese=chinese), family, processor.size(width, height), whole=True
        )
        assert answer.annotation is not None
        assert answer.annotation.flags == []
        objects = answer.annotation.objects
        assert [item["name"] for item in objects] == [shape.name(chinese=chinese) for shape in scene.shapes]
        for found, drawn in zip(objects, truth(scene), strict=True):
            assert found["bbox"] == pytest.approx(drawn["bbox"], abs=4), "a pixel of the smallest image is 4 ‰"


def test_its_boxes_are_in_pixels_of_what_its_own_processor_makes_of_the_image() -> None:
    scene = draw_scene(random.Random(2), 1000, 600, 1)
    answer = json.loads(describe(scene.image, Processor(max_visual_tokens=255), chinese=False))
    box = answer["objects"][0]["bbox_2d"]
    resized = (560, 336)  # smart_resize of 1000 × 600 into 255 tokens
    expected = [v * to / side for v, to, side in zip(scene.shapes[0].box, resized * 2, (1000, 600) * 2, strict=True)]
    assert iou(box, expected) > 0.97


def test_a_served_family_writes_its_own_keys_and_axes() -> None:
    square = Image.new("RGB", (400, 200), "white")
    square.paste(COLOURS["red"], (40, 100, 80, 140))
    with StandIn.started("--family", "gemini") as server:
        assert boxes_of(chat(server, square)) == [[500, 100, 700, 200]]
        assert json.loads(text_of(chat(server, square)))["objects"][0].keys() == {"box_2d", "label"}


@pytest.mark.parametrize(
    ("family", "limits", "tokens"),
    [
        ("qwen2.5-vl", (), {(28, 28): 4, (640, 480): 391, (1000, 600): 756, (4000, 80): 429, (2000, 1500): 3834}),
        ("qwen2.5-vl", (128, 256), {(28, 28): 144, (640, 480): 234, (1000, 600): 240, (336, 448): 192}),
        ("qwen3-vl", (4, 300), {(32, 32): 4, (640, 480): 300, (1000, 600): 286, (700, 300): 198}),
        # A tile of 448 pixels, and as many as fit the aspect with a thumbnail.
        ("internvl", (), {(400, 400): 256, (448, 896): 768, (1000, 600): 1792, (1800, 1350): 3328}),
    ],
)
def test_an_image_costs_the_tokens_of_the_grid(
    family: str, limits: tuple[int, ...], tokens: dict[tuple[int, int], int]
) -> None:
    options = zip(("--min-visual-tokens", "--max-visual-tokens"), map(str, limits), strict=False)
    with StandIn.started("--family", family, *(word for option in options for word in option)) as server:
        answers = {size: chat(server, Image.new("RGB", size, "white"), "Hello", max_tokens=1) for size in tokens}
    assert {size: prompt_tokens(answer) - 1 for size, answer in answers.items()} == tokens


@settings(max_examples=200)
@given(width=integers(20, 5000), height=integers(20, 5000), factor=sampled_from([28, 32]), most=integers(16, 5000))
def test_the_tokens_of_any_size_are_those_of_smart_resize(width: int, height: int, factor: int, most: int) -> None:
    family = FAMILIES["qwen3-vl" if factor == 32 else "qwen2.5-vl"]
    assume(max(width, height) <= 50 * min(width, height))
    processor = Processor(family, max_visual_tokens=most)
    across, down = smart_resize(width, height, ImageBudget(4 * factor**2, most * factor**2, factor))
    assert processor.size(width, height) == (across, down)
    assert processor.tokens(width, height) == (across // factor) * (down // factor)


def test_text_costs_tokens_with_and_without_an_image(stand_in: StandIn) -> None:
    assert prompt_tokens(chat(stand_in, None, "Hello world!")) == 3
    system = {"role": "system", "content": "Look."}
    user = {"role": "user", "content": "Hello world!"}
    assert prompt_tokens(chat(stand_in, None, messages=[system, user])) == 4
    white = Image.new("RGB", (56, 56), "white")
    assert prompt_tokens(chat(stand_in, white, "Hello world!")) == 7


def test_an_answer_over_max_tokens_is_cut(stand_in: StandIn) -> None:
    scene = draw_scene(random.Random(3), 400, 300, 3).image
    whole = chat(stand_in, scene)
    for cut in (chat(stand_in, scene, max_tokens=1), chat(stand_in, scene, max_completion_tokens=1)):
        assert text_of(cut) == text_of(whole)[:4]
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["usage"]["completion_tokens"] == 1
    assert whole["choices"][0]["finish_reason"] == "stop"


def test_a_server_without_usage_says_nothing_of_tokens() -> None:
    with StandIn.started("--no-usage") as server:
        assert "usage" not in chat(server, Image.new("RGB", (56, 56), "white"))


def test_boxes_that_go_wrong_are_moved_right_and_down_in_rows_and_proofs(stand_in: StandIn) -> None:
    shown = Image.new("RGB", (560, 560), "white")
    shown.paste(COLOURS["red"], (56, 56, 112, 112))
    shown.paste(COLOURS["blue"], (448, 448, 532, 532))
    stand_in.set_faults({"kind": "shift", "count": 2})
    for text in ("a caption", "Test drawing: a square"):
        assert boxes_of(chat(stand_in, shown, text)) == [[140, 140, 196, 196], [532, 532, 560, 560]]
    assert boxes_of(chat(stand_in, shown)) == [[56, 56, 112, 112], [448, 448, 532, 532]]


@pytest.mark.parametrize("proof", ["Test drawing: a red square", "图片描述:测试图,红色正方形"])
def test_faults_and_counts_spare_a_proof(stand_in: StandIn, proof: str) -> None:
    white = Image.new("RGB", (56, 56), "white")
    stand_in.set_faults({"kind": "503"})
    chat(stand_in, white, proof)
    assert error_of(stand_in, white, text="a caption")[0] == 503
    assert (stand_in.proofs(), stand_in.asked(), stand_in.most_at_once()) == (1, {"a caption": 1}, 0)
    stand_in.set_faults({"kind": "500", "proof": True})
    chat(stand_in, white, "a caption")
    assert error_of(stand_in, white, text=proof)[0] == 500
    assert (stand_in.proofs(), stand_in.asked(), stand_in.most_at_once()) == (2, {"a caption": 2}, 1)
    stand_in.forget()
    assert (stand_in.proofs(), stand_in.asked()) == (0, {})


def test_canned_answers_are_for_rows_alone() -> None:
    scene = draw_scene(random.Random(3), 560, 420, 1)
    with StandIn.started("--canned") as server:
        assert boxes_of(chat(server, scene.image, "a caption")) == [[28, 28, 196, 224]]
        answer = chat(server, scene.image, "Test drawing")
    assert iou(boxes_of(answer)[0], scene.shapes[0].box) > 0.95
    assert prompt_tokens(answer) == 20 * 15 + len("Test drawing") // 4


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
    assert body["error"]["message"] == "unsupported image URL file:///etc/hostname"
    assert error_of(stand_in, Image.new("RGB", (4000, 8), "white"))[0] == 400, "too long for its processor"
    code, body = error_of(stand_in, white, text="word " * 10_000)
    assert "maximum context length" in body["error"]["message"]
    stand_in.set_faults({"kind": "503"})
    assert error_of(stand_in, white)[0] == 503


async def test_slots_bound_running_requests_and_the_rest_queues() -> None:
    with StandIn.started("--slots", "4", "--prefill-seconds", "0.5") as server:
        white = Image.new("RGB", (56, 56), "white")
        started = time.monotonic()
        requests = [asyncio.create_task(asyncio.to_thread(chat, server, white)) for _ in range(6)]
        seen: list[tuple[float, float]] = []
        while not seen or sum(seen[-1]) < 6 or seen[-1][0] < 4:  # the engine admits between two steps
            assert time.monotonic() - started < 20, seen
            values = metrics(server)
            seen.append((values["vllm:num_requests_running"], values["vllm:num_requests_waiting"]))
            await asyncio.sleep(0.02)
        await asyncio.gather(*requests)
        assert time.monotonic() - started >= 1.0
    assert seen[-1] == (4, 2)
    assert max(running for running, _ in seen) == 4
    assert values["vllm:kv_cache_usage_perc"] > 0


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
