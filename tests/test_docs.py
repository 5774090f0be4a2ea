"""The pages: complete, the same in both languages, with links that lead somewhere and commands that exist."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
import yaml
from cyclopts import MissingArgumentError
from prefect.cli._app import _app as prefect

from tests.conftest import ROOT
from tests.support.pages import (
    ENGLISH,
    INLINE,
    PAGES,
    Command,
    anchors,
    blocks_of,
    commands_of,
    headings,
    inline_commands,
    text_of,
    without_blocks,
)
from vllm_annotate.cli.main import COMMANDS, app_with
from vllm_annotate.errors import FAILURE_KINDS, FailureKind
from vllm_annotate.pipeline.sweep import Variant
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.report.report import Images, Report
from vllm_annotate.serving.settings import Server

TOPICS = (
    "quickstart", "inputs", "servers", "output", "parameters", "resume", "deploy", "scale-out", "object-storage",
    "concurrency", "observability", "troubleshooting", "benchmarks", "architecture", "contributing", "proof", "pilot",
    "three-24gb-gpus", "evaluation", "audit", "export", "review",
)  # fmt: skip
GONE = (
    "anew", "mend", "lest", "for ever", "whoever", "is told", "is kept", "where there is none", "one a line, please",
    "billion", "billions",
)  # fmt: skip
OF_VLLM = ("Total number of attention heads", "unrecognized arguments")  # messages that it writes
TRANSLATED = sorted(page for page in PAGES if page.name.endswith(".zh-CN.md"))
PLACEHOLDERS = {"F": "f.jsonl", "G": "g.jsonl", "…": "x"}
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
translated = pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)


def english_of(page: Path) -> Path:
    return page.with_name(page.name.replace(".zh-CN", ""))


def told(language: str, block: str) -> tuple[str, list[str]]:
    """A block as both pages must have it: of lists of files, which are explained in the page's language, the names."""
    lines = block.splitlines()
    if block.startswith("labeled.jsonl  "):
        lines = [line.split("  ")[0] for line in lines]
    return language, lines


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").split()) <= 900


def test_every_topic_has_its_page() -> None:
    assert {page.stem for page in ENGLISH} == {"README", *TOPICS}


def test_the_four_pages_that_newcomers_read_are_there_in_chinese() -> None:
    assert [page.name.removesuffix(".zh-CN.md") for page in TRANSLATED] == [
        "README", "output", "quickstart", "troubleshooting",
    ]  # fmt: skip


class TestBothLanguages:
    @translated
    def test_have_the_same_chapters_in_the_same_order(self, page: Path) -> None:
        chinese, english = (headings(text_of(each)) for each in (page, english_of(page)))
        assert [level for level, _ in chinese] == [level for level, _ in english]

    @translated
    def test_have_the_same_commands_and_examples(self, page: Path) -> None:
        chinese, english = (blocks_of(each) for each in (page, english_of(page)))
        assert [told(each.language, each.text) for each in chinese] == [told(e.language, e.text) for e in english]

    @translated
    def test_name_every_option_field_and_file_as_often(self, page: Path) -> None:
        chinese, english = (
            Counter(re.findall(r"`[^`\n]+`", without_blocks(text_of(each)))) for each in (page, english_of(page))
        )
        assert chinese == english

    @translated
    def test_have_tables_with_the_same_rows(self, page: Path) -> None:
        chinese, english = (len(re.findall(r"^\|", text_of(each), re.MULTILINE)) for each in (page, english_of(page)))
        assert chinese == english


@named
def test_every_link_leads_somewhere(page: Path) -> None:
    text = without_blocks(text_of(page))
    for target in [*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(text_of(there)), target


@named
def test_words_that_are_gone_stay_gone(page: Path) -> None:
    text = " ".join(text_of(page).lower().split())
    assert [word for word in GONE if re.search(rf"\b{word}\b", text)] == []


def test_the_tables_are_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_of_failure_is_explained() -> None:
    assert set(FAILURE_KINDS) == set(get_args(FailureKind))


@pytest.mark.parametrize("page", ["output.md", "output.zh-CN.md"])
def test_every_key_of_the_report_is_explained(page: str) -> None:
    section = (ROOT / "docs" / page).read_text().partition("## report.json")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    keys = set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows)))
    assert keys == set(Report.model_fields)
    [images] = [row for row in rows if row.startswith("| `images`")]
    assert set(re.findall(r"`(\w+)`", images)) - {"images"} == set(Images.model_fields)


def test_every_message_that_troubleshooting_explains_is_one_that_the_code_writes() -> None:
    written = [text for package in ("vllm_annotate", "flows") for path in (ROOT / package).rglob("*.py")
               for text in texts_in(ast.parse(path.read_text()))]  # fmt: skip
    for row in re.findall(r"^\| (`[^|]+`) \|", text_of(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE):
        for message in INLINE.findall(row):
            parts = [part.strip(" :") for part in re.sub("^(error|PROBLEM):", "", message).split("…")]
            known = [part for part in parts if message.startswith(OF_VLLM) or any(part in text for text in written)]
            assert known == parts, message


def texts_in(tree: ast.AST) -> Iterator[str]:
    """All string literals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@named
def test_examples_in_json_and_yaml_are_valid(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            fields = yaml.safe_load(block.text)
            if isinstance(fields, list):
                assert [Variant.model_validate(each) for each in fields]
                continue
            assert (Server if "start" in fields else Recipe).model_validate(fields, extra="forbid")


@pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.name)
def test_every_command_and_option_exists(page: Path) -> None:
    for command in [*commands_of(page), *inline_commands(page)]:
        check(command)


def check(command: Command) -> None:
    """Fails for a command that has no such option, target, module or subcommand."""
    words = command.words[:-1] if command.words[-1] == "…" else command.words
    program, *arguments = [PLACEHOLDERS.get(word, word) for word in words]
    if program == "vllm-annotate":
        app_with(COMMANDS).parse_args(arguments, exit_on_error=False, print_error=False)
    elif program == "make":
        rules = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", rules, re.MULTILINE) for target in arguments if "=" not in target), command
    elif program.endswith("python") and arguments[0] == "-m":
        module = arguments[1].replace(".", "/")
        own = any((ROOT / f"{module}{end}").is_file() for end in (".py", "/__main__.py"))
        assert own or arguments[1] in ("pytest", "vllm.entrypoints.openai.api_server"), command
    elif program.endswith("python"):
        assert (ROOT / arguments[0]).is_file(), command
    elif program == "prefect":
        with suppress(MissingArgumentError):  # a sentence may name a command without them
            prefect.parse_args(
                [word for word in arguments if word != "--no-prompt"], exit_on_error=False, print_error=False
            )
