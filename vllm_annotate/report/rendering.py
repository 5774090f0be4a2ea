"""Renders a page from the templates: one file, in English or Chinese, without network access or scripts."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from vllm_annotate.printable import printable
from vllm_annotate.report.words import Language, translator

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def render(template: str, language: Language, **values: Any) -> bytes:
    """The page. Templates call `say` for their own words; all values are escaped unless they are Markup."""
    text = TEMPLATES.get_template(template).render(language=language, say=translator(language), **values)
    return printable(text).encode()  # all of it: names of models, servers and GPUs too
