"""Loops in a rationale are found, and ordinary texts are none."""

import random
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vllm_annotate.grounding.repetition import repeats_itself

ORDINARY = "A red cup stands left of a plate. The plate is large, and a fork lies beside it. "


@pytest.mark.parametrize(
    "phrase",
    [
        "a", "啊", "的", "the cat ", "左边是猫,", "and then, ", "!", "0, ", "🙂",
        "The cup is to the left of the plate. ", "画面左侧有一只白色的猫,右侧有一只黑色的狗,它们都在草地上。",
        "The tall man in the blue coat stands beside the old red car, and the woman with a hat waits. " * 3,
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", ORDINARY, "画面中央是一张木桌。", "x" * 7])
@pytest.mark.parametrize("after", ["", "The end.", ORDINARY[:20]])
def test_a_phrase_over_and_over_is_a_loop_wherever_it_stands(phrase: str, before: str, after: str) -> None:
    times = max(6, 45 // len(phrase))
    assert repeats_itself(before + phrase * times + after)


@pytest.mark.parametrize(
    "text",
    [
        "", "a", ORDINARY, "It is a very, very, very large dog.", "哈哈哈哈哈哈,大家都在笑。",
        "No, no, no, no! he says.",
        "-" * 80, "Contents ........................................ 7", "The price is 1000000000000000000 dollars.",
        "left of the cup, left of the plate, left of the fork, left of the spoon, left of the knife, left of the bowl",
        "一只猫,一只狗,一只鸟,一只鱼,一只虎,一只兔,一只羊,一只牛,一只马,一只鼠,一只鸡",
        "[10, 20, 30, 40], [50, 60, 70, 80], [90, 100, 110, 120], [130, 140, 150, 160], [170, 180, 190, 200]",
        ORDINARY * 2,
    ],
)  # fmt: skip
def test_ordinary_texts_are_none(text: str) -> None:
    assert not repeats_itself(text)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_no_long_text_is_taken_for_a_loop(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not [start for start in range(0, len(text), 2000) if repeats_itself(text[start : start + 2000])]


def test_words_at_random_are_none() -> None:
    rng = random.Random(1)
    words = ["cat", "dog", "left", "of", "the", "on", "猫", "左边"]
    assert not any(repeats_itself(" ".join(rng.choices(words, k=120))) for _ in range(500))
