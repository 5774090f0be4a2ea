"""What a file that is not JSON lines is instead: for messages only."""

import codecs
from collections.abc import Sequence
from pathlib import Path

LINES = "write one JSON object per line"
BOM_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first begins like UTF-16
BOM_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def remedy(path: Path, lines: Sequence[str]) -> str:
    """Returns what a file with these first lines is, if that shows, and how to make it JSON lines."""
    with path.open("rb") as file:
        start = file.read(64)
    to = path.with_suffix(".new.jsonl").name
    if encoding := _encoding(start):
        return f"it is {encoding}: convert it with iconv -f {encoding} -t UTF-8 {path.name} > {to}"
    if start.startswith(b"PK\x03\x04"):
        return f"it is an archive or a spreadsheet: {LINES}"
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("["):
        return f"it is a JSON array: convert it with jq -c '.[]' {path.name} > {to}"
    if first.startswith("{"):
        return f"its JSON objects take several lines: convert it with jq -c . {path.name} > {to}"
    for separator, name in (("\t", "TSV"), (",", "CSV")):
        if separator in first:
            read = f"read_csv({path.name!r}, separator={separator!r})"
            convert = f'python -c "import polars; polars.{read}.write_ndjson({to!r})"'
            return f"it looks like {name}: convert it with {convert}"
    return LINES


def _encoding(start: bytes) -> str:
    if start.startswith(BOM_UTF32):
        return "UTF-32"
    if start.startswith(BOM_UTF16):
        return "UTF-16"
    if start[:1] == b"\0":
        return "UTF-32BE" if start[1:3] == b"\0\0" else "UTF-16BE"
    if start[1:2] == b"\0":
        return "UTF-32LE" if start[2:4] == b"\0\0" else "UTF-16LE"
    return ""
