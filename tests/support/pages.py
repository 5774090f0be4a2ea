"""The pages for people, taken apart: blocks, links, headings, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "README.zh-CN.md", *(ROOT / "docs").glob("*.md")])
ENGLISH = [page for page in PAGES if not page.name.endswith(".zh-CN.md")]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
ON_A_SERVER = ("deploy.md", "scale-out.md")  # whose blocks without a language are for tests/deployed


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as a page has it, and what the page shows that it prints."""

    page: str
    text: str
    printed: str = ""

    @property
    def words(self) -> list[str]:
        """Without comment and redirection."""
        words = shlex.split(self.text.replace("\\\n", " "), comments=True)
        return words[: words.index(">")] if ">" in words else words


@cache
def text_of(page: Path) -> str:
    return page.read_text()


def without_blocks(text: str) -> str:
    return FENCED.sub("", text)


def headings(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^(#+) (.+)$", without_blocks(text), re.MULTILINE)


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for _, title in headings(text)}


def blocks_of(page: Path) -> list[Block]:
    return [Block(page.name, language, text) for language, text in FENCED.findall(text_of(page))]


def commands_in(block: Block) -> Iterator[Command]:
    """The commands of a block that is to be typed; none in others."""
    if block.language == "console":
        for chunk in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, rest = _first_command(chunk)
            yield Command(block.page, command, rest)
    elif block.language == "bash" or (block.language == "" and block.page in ON_A_SERVER):
        rest = re.sub(r"^#.*\n", "", block.text, flags=re.MULTILINE)
        while rest.strip():
            command, rest = _first_command(rest)
            yield Command(block.page, command)


def commands_of(page: Path) -> list[Command]:
    """All commands in the fenced blocks of a page, in their order."""
    return [command for block in blocks_of(page) for command in commands_in(block)]


def inline_commands(page: Path) -> list[Command]:
    """Those within a sentence or a table that are complete."""
    found = INLINE.findall(without_blocks(text_of(page)))
    return [Command(page.name, text) for text in found if re.match(r"(vllm-annotate|make|prefect|python) [\w-]", text)]


def _first_command(text: str) -> tuple[str, str]:
    """A command, with the lines that it goes on in, and what follows it."""
    lines = text.lstrip("\n").splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        command = "".join(lines[:count])
        if not command.rstrip("\n").endswith("\\") and _is_whole(command):
            return command.rstrip("\n"), "".join(lines[count:])
    raise ValueError(f"a command without an end: {text}")


def _is_whole(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True
