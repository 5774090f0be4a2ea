"""The two READMEs say the same: chapters, commands, names and links."""

import re
from collections import Counter

import pytest

from tests.conftest import ROOT

ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LISTS_OF_FILES = ("labeled.jsonl  ", "flows/annotate.py  ")  # explained in the language of the page


def without_blocks(text: str) -> str:
    return FENCED.sub("", text)


def headings(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^(#+) (.+)$", without_blocks(text), re.MULTILINE)


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for _, title in headings(text)}


def told(language: str, block: str) -> tuple[str, list[str]]:
    """A block as both pages must have it: of lists of files only the names."""
    lines = block.splitlines()
    return language, [line.split("  ")[0] for line in lines] if block.startswith(LISTS_OF_FILES) else lines


def test_both_have_the_same_chapters_in_the_same_order() -> None:
    assert [level for level, _ in headings(CHINESE)] == [level for level, _ in headings(ENGLISH)]


def test_every_command_and_example_is_the_same() -> None:
    assert [told(*each) for each in FENCED.findall(CHINESE)] == [told(*each) for each in FENCED.findall(ENGLISH)]


def test_every_option_field_and_file_is_named_in_both_as_often() -> None:
    named = [Counter(re.findall(r"`[^`\n]+`", without_blocks(text))) for text in (CHINESE, ENGLISH)]
    assert named[0] == named[1]


def test_tables_have_the_same_rows() -> None:
    assert len(re.findall(r"^\|", CHINESE, re.MULTILINE)) == len(re.findall(r"^\|", ENGLISH, re.MULTILINE))


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_every_link_leads_somewhere(text: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", without_blocks(text)):
        if target.startswith("#"):
            assert target[1:] in anchors(text), target
        elif "://" not in target:
            assert (ROOT / target).exists(), target
