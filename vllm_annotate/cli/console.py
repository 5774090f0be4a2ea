"""Messages of a command: plain lines, or JSON objects, one per line."""

import json
import logging
import sys
from datetime import UTC, datetime

from vllm_annotate.printable import Printable, printable

REFUSED = 2


class JsonLines(logging.Formatter):
    """`{"time": "2026-11-25T12:00:00.000+00:00", "level": "INFO", "message": "…"}`."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line of JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return json.dumps({"time": time, "level": record.levelname, "message": message}, ensure_ascii=False)


class Console:
    """Writes messages to standard error."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def say(self, message: str, level: int = logging.INFO) -> None:
        """Prints a message."""
        message = printable(message)
        if self.as_json:
            record = logging.LogRecord("vllm_annotate", level, "", 0, message, None, None)
            message = JsonLines().format(record)
        print(message, file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        """Prints the result of a command to standard output."""
        print(printable(text))

    def refuse(self, message: str) -> int:
        """Prints an error on one line; returns the exit code."""
        self.say(("" if self.as_json else "error: ") + " ".join(message.split()), logging.ERROR)
        return REFUSED

    def handler(self) -> logging.Handler:
        """A handler that prints log records in this console's format."""
        handler = logging.StreamHandler(sys.stderr)
        if self.as_json:
            handler.setFormatter(JsonLines())
        else:
            handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)-7s | %(message)s", "%H:%M:%S"))
        handler.addFilter(Printable())
        return handler
