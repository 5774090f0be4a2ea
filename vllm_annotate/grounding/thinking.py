"""Removes what a model thinks aloud before it answers, in the tags of the families that think."""

import re

TAGGED = "think|thinking|thought|thoughts|reasoning|reason|reflection"
END = re.compile(
    rf"</(?:seed:)?(?:{TAGGED})>"  # Qwen, GLM, DeepSeek, InternVL, MiniCPM; Seed
    r"|◁/think▷"  # Kimi
    r"|\[/THINK\]"  # Mistral
    r"|<\|(?:end_of_thought|END_THINKING)\|>"
    r"|<\|channel\|>final[^<{\[]{0,60}<\|message\|>|<channel\|>"  # OpenAI, Gemma
    r"|<answer>",
    re.IGNORECASE,
)
START = re.compile(
    rf"<(?:seed:)?(?:{TAGGED})>|◁think▷|\[THINK\]|<\|(?:begin_of_thought|START_THINKING)\|>"
    r"|<\|channel\|>(?:analysis|commentary)|<\|channel>thought",
    re.IGNORECASE,
)


def without_thinking(text: str) -> str:
    """Returns the text after the thinking, which may lack its opening tag, or never end, and may contain braces."""
    answer_at = max((end.end() for end in END.finditer(text)), default=0)
    return START.split(text[answer_at:], maxsplit=1)[0]
