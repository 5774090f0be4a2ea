"""The words of the pages in two languages. Templates have the English ones."""

from collections.abc import Callable
from typing import Literal

Language = Literal["en", "zh"]

CHINESE = {
    # gallery
    "Show": "显示",
    "all": "全部",
    "nothing flagged": "无标记",
    "no annotation": "无标注",
    "no image": "无图片",
    "boxes": "个框",
    "caption": "描述",
    "rationale": "理由",
    "raw model output": "模型原始输出",
    # where boxes lie
    "top left": "左上",
    "top centre": "上方中间",
    "top right": "右上",
    "middle left": "左侧",
    "middle centre": "正中",
    "middle right": "右侧",
    "bottom left": "左下",
    "bottom centre": "下方中间",
    "bottom right": "右下",
}


def translator(language: Language) -> Callable[[str], str]:
    """Returns a function from English words to the language's; unknown words stay as they are."""
    return (lambda words: CHINESE.get(words, words)) if language == "zh" else lambda words: words
