"""JSON Lines: a record per image."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes each record on a line."""
    with path.open("wb") as file:
        for record in records:
            file.write(orjson.dumps(record) + b"\n")
