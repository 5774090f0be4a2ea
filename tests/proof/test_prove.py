"""Proofs of stand-ins that write boxes in each space: the right family is proven, others are refused."""

import random
from collections.abc import Awaitable, Callable

import pytest

from stand_in.process import StandIn
from tests.proof.conftest import Server
from vllm_annotate.errors import ServerRefused, UsageError
from vllm_annotate.inference.client import Inference
from vllm_annotate.proof.finding import Finding
from vllm_annotate.proof.prove import CANDIDATES, Prover, identify
from vllm_annotate.proof.scenes import FAMILY_OF, space_of
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.settings import Recipe

Prove = Callable[..., Awaitable[Finding]]


@pytest.mark.fuzz
@pytest.mark.timeout(300)
@pytest.mark.parametrize("really", FAMILIES)
async def test_the_right_family_is_proven_and_those_of_other_spaces_are_refused(
    really: str, server: Server, prove: Prove, fuzzing: bool
) -> None:
    one = server("--family", really)
    own = space_of(FAMILIES[really])
    for _ in range(10 if fuzzing else 1):
        finding = await prove(one, really)
        assert finding.points.verdict == "proven", finding
        assert finding.points.steady
        assert finding.sees.verdict == ("agrees" if FAMILIES[really].grid else "recorded")
        assert finding.as_they_are
        assert not finding.refused
        for declared in CANDIDATES:
            if space_of(FAMILIES[declared]) == own:
                continue
            finding = await prove(one, declared)
            assert finding.points.verdict == "other", finding
            assert finding.points.family == FAMILY_OF[own]
            assert f"set the recipe's family to {FAMILY_OF[own]}" in finding.refused


async def test_families_that_share_a_space_are_the_same_here(server: Server, prove: Prove) -> None:
    for really, declared in (("deepseek-vl2", "internvl"), ("minicpm-v", "qwen2-vl"), ("glm-v", "deepseek-vl2")):
        assert (await prove(server("--family", really), declared)).points.verdict == "proven"


async def test_a_server_that_reduces_images_is_refused_if_boxes_are_in_pixels(server: Server, prove: Prove) -> None:
    small = server("--max-visual-tokens", "600")
    finding = await prove(small, "qwen2.5-vl")
    assert finding.sees.verdict == "differs"
    assert "visual tokens, fewer than the recipe's max_visual_tokens of 1280" in finding.refused
    assert "--mm-processor-kwargs '{\"max_pixels\": 1003520}'" in finding.refused
    most = finding.sees.most
    assert most is not None
    finding = await prove(small, "qwen2.5-vl", max_visual_tokens=most)
    assert not finding.refused, "the remedy helps"
    assert finding.as_they_are


async def test_a_server_that_reduces_images_gets_them_resized_if_boxes_are_relative(
    server: Server, prove: Prove
) -> None:
    finding = await prove(server("--family", "qwen2-vl", "--max-visual-tokens", "600"), "qwen2-vl")
    assert (finding.sees.verdict, finding.points.verdict) == ("differs", "proven")
    assert not finding.refused
    assert not finding.as_they_are


async def test_a_server_without_usage_gets_images_resized_here(server: Server, prove: Prove) -> None:
    finding = await prove(server("--no-usage"), "qwen2.5-vl")
    assert (finding.sees.verdict, finding.points.verdict) == ("uncounted", "proven")
    assert not finding.as_they_are
    assert "what it sees is unknown, as its answers have no usage" in finding.sentences()[0]


async def test_boxes_that_fit_no_space_are_unproven_and_not_refused(stand_in: StandIn, prove: Prove) -> None:
    stand_in.set_faults({"kind": "text", "text": "I like it.", "count": None, "proof": True})
    finding = await prove(stand_in, "qwen2.5-vl")
    assert finding.points.verdict == "unproven"
    assert not finding.refused
    assert not finding.is_proven


async def test_boxes_that_fit_no_space_are_refused_if_the_grid_is_another_familys(
    stand_in: StandIn, prove: Prove
) -> None:
    stand_in.set_faults({"kind": "text", "text": "I like it.", "count": None, "proof": True})
    finding = await prove(stand_in, "qwen3-vl")
    assert (finding.sees.verdict, finding.points.verdict) == ("differs", "unproven")
    assert "of 28×28 pixels, not 32×32 as with qwen3-vl: correct the recipe's family" in finding.refused


async def test_passing_faults_of_a_server_do_not_matter(stand_in: StandIn, prove: Prove) -> None:
    stand_in.set_faults(*({"kind": kind, "count": 2, "proof": True} for kind in ("503", "500", "reset")))
    assert (await prove(stand_in, "qwen2.5-vl")).is_proven


async def test_a_refused_server_does_not_decide_how_images_are_sent(
    stand_in: StandIn, server: Server, rng: random.Random
) -> None:
    urls = [f"{stand_in.url}/v1", f"{server('--max-visual-tokens', '600').url}/v1"]
    async with Inference(urls, "none", max_concurrency=8) as inference:
        prover = Prover(Recipe(), FAMILIES["qwen2.5-vl"], await inference.check(None), rng)
        right, small = inference.pool.endpoints
        await prover.prove(right)
        with pytest.raises(ServerRefused):
            await prover.prove(small)
        assert prover.as_they_are


async def test_requests_of_a_proof_count_in_no_figure(stand_in: StandIn, rng: random.Random) -> None:
    async with Inference([f"{stand_in.url}/v1"], "none", max_concurrency=8) as inference:
        model, (endpoint,) = await inference.check(None), inference.pool.endpoints
        await Prover(Recipe(), FAMILIES["qwen2.5-vl"], model, rng).prove(endpoint)
        counts = inference.counts()[endpoint.url]
    assert (counts["answered"], counts["troubles"], counts["concurrency"]["most_in_flight"]) == (0, 0, 0)
    assert stand_in.asked() == {}
    assert stand_in.proofs() == 15


async def test_a_server_that_goes_away_during_the_proof_has_no_finding(stand_in: StandIn, rng: random.Random) -> None:
    async with Inference([f"{stand_in.url}/v1"], "none", max_concurrency=8) as inference:
        model, (endpoint,) = await inference.check(None), inference.pool.endpoints
        stand_in.kill()
        prover = Prover(Recipe(), FAMILIES["qwen2.5-vl"], model, rng)
        assert await prover.prove(endpoint) is None
        assert prover.findings == {}


@pytest.mark.parametrize("really", CANDIDATES)
async def test_a_model_whose_name_tells_nothing_is_identified_by_its_boxes(really: str, server: Server) -> None:
    said: list[str] = []
    one = server("--family", really)
    async with Inference([f"{one.url}/v1"], "none", max_concurrency=8) as inference:
        model = await inference.check(None)
        family = await identify(inference.pool.endpoints, Recipe(), model, said.append)
    assert family == FAMILIES[really]
    assert really in said[0]


async def test_a_model_whose_boxes_fit_nothing_is_not_identified(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "text", "text": '{"objects": []}', "count": None, "proof": True})
    async with Inference([f"{stand_in.url}/v1"], "none", max_concurrency=8) as inference:
        model = await inference.check(None)
        with pytest.raises(UsageError, match="its boxes for drawn scenes fit none of them"):
            await identify(inference.pool.endpoints, Recipe(), model, print)


async def test_a_model_that_cannot_be_identified_for_a_fault_is_refused_with_the_fault(stand_in: StandIn) -> None:
    stand_in.set_faults({"kind": "400", "count": None, "proof": True})
    async with Inference([f"{stand_in.url}/v1"], "none", max_concurrency=8) as inference:
        model = await inference.check(None)
        with pytest.raises(UsageError, match=r"fit none of them \(HTTP 400: stand-in fault 400\)"):
            await identify(inference.pool.endpoints, Recipe(), model, print)


async def test_a_server_that_was_proven_and_answers_no_more_is_asked_again(
    stand_in: StandIn, rng: random.Random
) -> None:
    async with Inference([f"{stand_in.url}/v1"], "none", max_concurrency=8) as inference:
        model, (endpoint,) = await inference.check(None), inference.pool.endpoints
        prover = Prover(Recipe(), FAMILIES["qwen2.5-vl"], model, rng, patience_seconds=0)
        assert await prover.prove(endpoint) is not None
        stand_in.set_faults({"kind": "503", "count": None, "proof": True})
        assert await prover.prove(endpoint) is None
        stand_in.set_faults({"kind": "shift", "count": None})
        with pytest.raises(ServerRefused, match="its boxes were right, and are not any more"):
            await prover.prove(endpoint)
        stand_in.set_faults()
        assert await prover.prove(endpoint) is not None


@pytest.mark.parametrize("tokens", [128, 512, 499])
async def test_a_budget_of_one_size_is_proven(server: Server, prove: Prove, tokens: int) -> None:
    finding = await prove(server(), "qwen2.5-vl", min_visual_tokens=tokens, max_visual_tokens=tokens)
    assert not finding.refused
    assert finding.points.verdict == "proven"
