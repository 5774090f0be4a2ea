"""Fills the tables of these pages from the code: `python docs/generate.py`. With `--check` it changes nothing.

A table is what stands between `<!-- table: NAME -->` and `<!-- end -->`. Pages in other languages translate the texts,
so of their tables only the first column is checked, and nothing is written. Exit codes: 0 up to date or written, 1 not.
"""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Secret

from flows.annotate_approved import annotate_approved
from flows.annotate_sharded import annotate_sharded
from flows.retry import retry_failures
from vllm_annotate.cli.main import EXIT_CODES
from vllm_annotate.errors import FAILURE_KINDS
from vllm_annotate.grounding.box_checks import FLAGS
from vllm_annotate.job import Job
from vllm_annotate.recipe.families import FAMILIES
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.results.lines import OUTPUT_FIELDS
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.settings import Server

PAGES = Path(__file__).parent
MARKED = re.compile(r"(?<=<!-- table: )([\w -]+?)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
SPACES = {
    "pixels": "pixels of the resized image",
    "thousandths": "0–1000",
    "999ths": "0–999",
    "unit": "0–1",
}
Row = tuple[str, ...]


def code(value: object) -> str:
    """As it stands in a command, a YAML file or JSON; nothing for what is empty."""
    if isinstance(value, bool):
        value = str(value).lower()
    return "" if value in (None, "", [], {}) else f"`{value}`"


def fields(model: type[BaseModel]) -> list[Row]:
    """A model's fields, one a row."""
    rows: list[Row] = [("field", "default", "meaning")]
    for name, field in model.model_fields.items():
        value = field.get_default(call_default_factory=True)
        value = value.get_secret_value() if isinstance(value, Secret) else value
        default = "required" if field.is_required() else code(value)
        rows.append((code(name), default, str(field.description)))
    return rows


def own_parameters(flow: Any) -> list[Row]:
    """The parameters of a flow that a run does not have."""
    rows: list[Row] = [("parameter", "default", "meaning")]
    required = flow.parameters.required
    for name, schema in flow.parameters.properties.items():
        if name not in Job.model_fields:
            default = "required" if name in required else code(schema.get("default"))
            rows.append((code(name), default, " ".join(schema["description"].split())))
    return rows


def parameters() -> list[Row]:
    """Of a run, each with its option."""
    return [("parameter", "default", "meaning"), *fields(Job)[1:]]


def families() -> list[Row]:
    """What `family` of a recipe may be, but for `auto`."""
    rows: list[Row] = [("family", "space of the boxes", "form of an object")]
    for family in FAMILIES.values():
        order = ", y first" if family.y_first else ""
        rows.append((code(family.name), SPACES[family.space], f"`{family.name_key}`, `{family.box_key}`{order}"))
    return rows


def named(first: str, others: Iterable[str], meanings: dict[Any, Any]) -> list[Row]:
    """A mapping of names to one or several texts."""
    rows: list[Row] = [(first, *others)]
    for name, texts in meanings.items():
        rows.append((code(name), *([texts] if isinstance(texts, str) else texts)))
    return rows


TABLES: dict[str, Callable[[], list[Row]]] = {
    "parameters": parameters,
    "annotate-sharded": lambda: own_parameters(annotate_sharded),
    "annotate-approved": lambda: own_parameters(annotate_approved),
    "retry-failures": lambda: own_parameters(retry_failures),
    "server": lambda: fields(Server),
    "start": lambda: fields(Launch),
    "recipe": lambda: fields(Recipe),
    "families": families,
    "fields": lambda: named("field", ["meaning"], OUTPUT_FIELDS),
    "flags": lambda: named("flag", ["what was found", "what was done"], FLAGS),
    "failures": lambda: named("kind", ["what it means", "what to do"], FAILURE_KINDS),
    "exit codes": lambda: named("code", ["meaning"], EXIT_CODES),
}


def table(name: str) -> str:
    """A table in Markdown."""
    head, *rows = TABLES[name]()
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "".join("| " + " | ".join(line).replace("|  |", "| |") + " |\n" for line in lines).replace(" --- ", "---")


def first_column(text: str) -> list[str]:
    """Of a table in Markdown, without its heading, which may be translated."""
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:]


def filled(page: str) -> str:
    """A page with its tables as the code has them."""
    return MARKED.sub(lambda found: f"{found[1]}{found[2]}{table(found[1])}", page)


def main(arguments: list[str]) -> int:
    """Fills or checks all pages; returns the exit code."""
    stale = []
    for path in sorted(PAGES.glob("*.md")):
        page = path.read_text()
        if path.name.endswith(".zh-CN.md"):
            wrong = [name for name, _, text in MARKED.findall(page) if first_column(text) != first_column(table(name))]
            stale += [f"{path.name}: the first column of the table {name}" for name in wrong]
        elif (new := filled(page)) != page:
            stale += [f"{path.name}: run python docs/generate.py"] if "--check" in arguments else []
            if "--check" not in arguments:
                path.write_text(new)
    for problem in stale:
        print(f"not what the code says: {problem}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
