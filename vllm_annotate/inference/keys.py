"""The API key that is sent if none is set, and how a key is kept out of messages."""

from urllib.parse import quote

import orjson

NO_KEY = "none"  # the openai client insists on a key; a server without one ignores it
MASK = "***"
PIECE = 6  # characters of a key that are hidden even without the rest: servers and gateways cut what they echo
LONGEST_TEXT, LONGEST_LINE = 20_000, 500  # characters


class Mask:
    """Hides keys and passwords in what servers say: some echo a request's headers, whole or cut."""

    def __init__(self, *secrets: str) -> None:
        forms: set[str] = set()
        self._pieces: set[str] = set()
        for secret in set(secrets) - {"", NO_KEY}:
            written = orjson.dumps(secret).decode()[1:-1]
            forms |= {secret, written, written.replace("/", "\\/"), quote(secret, safe="")}
            self._pieces |= {secret[at : at + PIECE] for at in range(len(secret) - PIECE + 1)}
        self._forms = sorted(forms, key=len, reverse=True)

    def text(self, body: bytes | str) -> str:
        """The start of a body without the key. Cut only the result: half a key looks like any text."""
        text = body[: 2 * LONGEST_TEXT]
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        for form in self._forms:
            text = text.replace(form, MASK)
        return self._without_pieces(text)[:LONGEST_TEXT]

    def line(self, text: bytes | str) -> str:
        """The start of a text on one line, without the key."""
        return " ".join(self.text(text).split())[:LONGEST_LINE]

    def _without_pieces(self, text: str) -> str:
        if not self._pieces:
            return text
        kept, end = [], 0
        for at in range(len(text) - PIECE + 1):
            if text[at : at + PIECE] in self._pieces:
                if at >= end:
                    kept += [text[end:at], MASK]
                end = at + PIECE
        return "".join(kept) + text[end:]
