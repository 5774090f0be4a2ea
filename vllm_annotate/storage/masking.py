"""Removes secrets from texts of others, such as a server's errors and logs."""

import os
import re
from collections.abc import Iterable, Mapping
from itertools import groupby

PIECE = 6  # characters: a text may show no longer piece of a secret, as others shorten what they repeat
SECRET_WORDS = re.compile(
    r"key|token|secret|password|passwd|passphrase|credential|authorization|auth_string", re.IGNORECASE
)
# Names with such a word for something else: how many tokens, how texts become tokens, keys that somebody presses.
OTHER_WORDS = re.compile(
    r"(?:max|min|num)(?:[_-][a-z]+)*[_-]tokens(?![a-z])|tokeni[sz]|key(?:board|word)", re.IGNORECASE
)
PASSWORD_IN_URL = re.compile(r"://[^/\s@]*?:([^/\s]*)@")
MASK = "***"


def masked(text: str, secrets: Iterable[str]) -> str:
    """The text with *** for each secret and each longer piece of one. Mask before you shorten."""
    hidden = bytearray(len(text))
    for secret in secrets:
        pieces = {secret[start : start + PIECE] for start in range(len(secret) - PIECE + 1)}
        for start in range(len(text) - PIECE + 1) if pieces else ():
            if text[start : start + PIECE] in pieces:
                hidden[start : start + PIECE] = b"\1" * PIECE
    runs = groupby(zip(text, hidden, strict=True), key=lambda pair: pair[1])
    return "".join(MASK if is_hidden else "".join(letter for letter, _ in run) for is_hidden, run in runs)


def names_secret(name: str) -> bool:
    """Whether a variable, field or option of this name may hold a secret: HF_TOKEN does, max_tokens does not."""
    return SECRET_WORDS.search(OTHER_WORDS.sub("", name)) is not None


def secrets_in(variables: Mapping[str, str] = os.environ) -> list[str]:
    """The secrets among environment variables: those with such a name, and passwords in URLs."""
    named = [value for name, value in variables.items() if names_secret(name)]
    return named + [password for value in variables.values() for password in PASSWORD_IN_URL.findall(value)]
