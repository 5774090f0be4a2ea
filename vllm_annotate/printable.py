"""Makes texts of others safe to show: a model's name, a server's error, a caption or a file name may hold anything."""

import logging
import re

# Control characters, escape sequences among them, but for tab and new line; halves of characters; and characters that
# are not seen but turn the direction of the text around them, or hide in it. What is written right to left stays.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """The text with a replacement character for each that a terminal, log or page should not get."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


class Printable(logging.Filter):
    """Makes the messages of a logger or handler printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the record; never drops it."""
        record.msg, record.args = printable(record.getMessage()), None
        return True
