"""What models think aloud before they answer."""

import pytest

from vllm_annotate.grounding.thinking import without_thinking


@pytest.mark.parametrize(
    "text",
    [
        "<think>Hm {</think>answer",
        "Hm {</think>answer",
        "<think>Hm</think>answer<think>and on",
        "<think>a</think>b<think>c</think>answer",
        "<Thinking>Hm</Thinking>answer",
        "<reasoning>Hm</reasoning>\n<answer>answer",
        "<seed:think>Hm</seed:think>answer",
        "◁think▷嗯◁/think▷answer",
        "[THINK]Hm[/THINK]answer",
        "<|begin_of_thought|>Hm<|end_of_thought|>answer",
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>answer",
        "<|channel>thought\nHm<channel|>answer",
        "answer",
        f"<think>{'Hm. ' * 100_000}</think>answer",
    ],
)
def test_the_answer_is_what_follows_the_thinking(text: str) -> None:
    assert without_thinking(text).strip() == "answer"


def test_of_a_thought_that_never_ends_nothing_is_left() -> None:
    assert without_thinking("<think>The cat is at [1, 2, 3, 4]") == ""
