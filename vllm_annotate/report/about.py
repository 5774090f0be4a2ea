"""What an output was made with, in words, and the language of its page."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from vllm_annotate.report.report import Report
from vllm_annotate.report.words import Language

HAN = re.compile(r"[\u4e00-\u9fff]")
LETTER = re.compile(r"[^\W\d_]")
CHINESE_SHARE = 0.3  # of the letters of a prompt: its JSON keys are English
Say = Callable[[str], str]


def settings_of(report: Report) -> dict[str, Any]:
    """The settings of the report's recipe; empty if no answer was made with it."""
    for maker in reversed(report.made_by):
        if maker.get("recipe") == report.recipe and isinstance(maker.get("settings"), dict):
            return dict(maker["settings"])
    return {}


def has_own_prompt(settings: dict[str, Any]) -> bool:
    """Whether a prompt of the recipe is not the built-in one."""
    return any(settings.get(name) is not None for name in ("system_prompt", "user_prompt"))


def language_of(report: Report) -> Language:
    """The language of the recipe's prompts."""
    settings = settings_of(report)
    if not has_own_prompt(settings):
        return "zh" if settings.get("language") == "zh" else "en"
    prompts = f"{settings.get('system_prompt') or ''} {settings.get('user_prompt') or ''}".replace("{caption}", "")
    letters = len(LETTER.findall(prompts))
    return "zh" if letters and len(HAN.findall(prompts)) >= CHINESE_SHARE * letters else "en"


def recipe_in_words(report: Report, say: Say) -> list[str]:
    """The recipe's prompt, sampling and image budget."""
    settings = settings_of(report)
    parts = []
    if settings:
        parts = [
            say(_prompt(settings)),
            say("answers follow a JSON schema" if settings.get("structured_output") else "answers in any form"),
            say(f"temperature {settings.get('temperature', 0):g}"),
            say(f"at most {settings.get('max_tokens', 0):,} tokens and {settings.get('max_objects', 0):,} objects"),
            say(
                f"images of {settings.get('min_visual_tokens', 0):,} to {settings.get('max_visual_tokens', 0):,} "
                "visual tokens"
            ),
        ]
    return [*parts, f"{say('recipe')} {report.recipe}"]


def time_of(started: str) -> str:
    """`2026-11-26 08:53 UTC`."""
    try:
        return f"{datetime.fromisoformat(started):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return started


def _prompt(settings: dict[str, Any]) -> str:
    if has_own_prompt(settings):
        return "a prompt of your own"
    return "the built-in Chinese prompt" if settings.get("language") == "zh" else "the built-in English prompt"
