"""Boxes in plain text: in the tags that families write, or on lines of a name and four numbers."""

import re
from collections.abc import Iterator

from vllm_annotate.grounding.boxes import BOX_KEYS, NUMBER, QUAD, RawBox

NAME_TAG = r"(?:<ref>|<\|ref\|>|<\|object_ref_start\|>)(?P<name>[^<>]{0,200})(?:</ref>|<\|/ref\|>|<\|object_ref_end\|>)"
BOX_TAG = (
    r"(?:<box>|<\|det\|>|<\|box_start\|>|<\|begin_of_box\|>)(?P<box>[^<>]{0,2000})"
    r"(?:</box>|<\|/det\|>|<\|box_end\|>|<\|end_of_box\|>)"
)
# Boxes after vLLM has removed the special tokens around them: Qwen2-VL's (a,b),(c,d), and [[a, b, c, d]] of others.
FOUR = r"\[\s{0,9}\d+(?:\s{0,9},\s{0,9}\d+){3}\s{0,9}\]"
BARE_BOX = (
    r"(?P<bare>\(\s*\d+\s*,\s*\d+\s*\)\s*,\s*\(\s*\d+\s*,\s*\d+\s*\)"
    rf"|\[\s{{0,9}}{FOUR}(?:\s{{0,9}},\s{{0,9}}{FOUR})*\s{{0,9}}\])"
)
# A whole line: a bullet, a name, a box. `1. cat: [10, 20, 30, 40]`, `| cat | [10, 20, 30, 40] |`
NO_NAME = r"\n\[\](){}（）<>:：|*`\""
LINE_BOX = (
    rf"(?:^|(?<=\n))(?:[ \t|*•\-]|\d{{1,3}}[.)、]){{0,8}}+(?P<line_name>[^\s{NO_NAME}][^{NO_NAME}]{{0,79}}+)"
    rf"[\s:：|*`\"\-]{{0,8}}+(?P<line>{QUAD.pattern})[ \t,;，；。.|`*]{{0,8}}+(?=\n|\Z)"
)
NAMED_BOX_TAG = re.sub(r"\?P<\w+>", "?:", rf"{NAME_TAG}\s*{BOX_TAG}")
TAGS = re.compile(f"{NAME_TAG}|{BOX_TAG}|{BARE_BOX}|{LINE_BOX}")


def named_boxes(text: str) -> Iterator[tuple[str, RawBox | None]]:
    """Yields names and boxes in `<ref>name</ref><box>…</box>` and similar tags, and on lines of their own.

    Without a name tag, the name is the text before the box on its line. None stands for a malformed box.
    """
    name, end = "", 0
    for match in TAGS.finditer(text):
        if match["name"] is not None:
            name = match["name"]
        elif match["line"] is not None:
            line_name = match["line_name"].strip(" \t-")
            yield "" if line_name in BOX_KEYS else line_name, RawBox(_numbers(match["line"]))
        else:
            before = text[end : match.start()].rpartition("\n")[2].strip(" \t-*:：,，.。;；\"'")
            numbers = _numbers(match["box"] or match["bare"] or "")
            for at in range(0, len(numbers), 4):
                four = numbers[at : at + 4]
                yield (name or before).strip(), (RawBox(four) if len(four) == 4 else None)
            if match["bare"] is not None or before:
                name = ""
        end = match.end()


def _numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]
