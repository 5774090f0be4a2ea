"""What a file that is not JSON lines is instead: for messages only."""

import codecs
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

LINES = "write one JSON object per line"
BOM_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first begins like UTF-16
BOM_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UNPACKERS = {b"\x1f\x8b": "zcat", b"\x28\xb5\x2f\xfd": "zstdcat"}
KINDS = {  # how a file begins → what it is
    b"PK\x03\x04": "an archive or a spreadsheet",
    b"BZh": "compressed with bzip2, which is not supported; unpack it with bunzip2",
    b"\xfd7zXZ": "compressed with xz, which is not supported; unpack it with unxz",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"\xff\xd8\xff": "an image",
    b"\x89PNG": "an image",
    b"%PDF": "a PDF",
}
BINARY = re.compile(r"[\0-\x08\x0e-\x1f\x7f\ufffd]")
IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|avif|bmp|tiff?)$", re.IGNORECASE)


def remedy(path: Path, lines: Sequence[str]) -> str:
    """Returns what a file with these first lines is, if that shows, and how to make it JSON lines."""
    with path.open("rb") as file:
        start = file.read(64)
    name, to = shlex.quote(path.name), shlex.quote(path.with_suffix(".new.jsonl").name)
    if encoding := _encoding(start):
        return f"it is {encoding}: convert it with iconv -f {encoding} -t UTF-8 {name} > {to}"
    if what := next((what for magic, what in KINDS.items() if start.startswith(magic)), ""):
        return f"it is {what}: {LINES}"
    first = next((line.strip() for line in lines if line.strip()), "")
    if not first:
        return f"it is empty: {LINES}"
    unpacker = next((unpacker for magic, unpacker in UNPACKERS.items() if start.startswith(magic)), "")
    for bracket, what, query in (
        ("[", "it is a JSON array", "'.[]'"),
        ("{", "its JSON objects take several lines", "."),
    ):
        if first.startswith(bracket):
            jq = f"{unpacker} {name} | jq -c {query}" if unpacker else f"jq -c {query} {name}"
            return f"{what}: convert it with {jq} > {to}"
    return LINES if BINARY.search(first) else _table(path, first, to)


def _table(path: Path, first: str, to: str) -> str:
    """Returns the remedy for a file of text whose first line is this."""
    if separator := max("\t,;", key=first.count) if any(map(first.count, "\t,;")) else "":
        kind = "TSV" if separator == "\t" else "CSV"
        read = f"read_csv({json.dumps(path.name)}, separator={json.dumps(separator)})"
        program = f"import polars; polars.{read}.write_ndjson({json.dumps(path.with_suffix('.new.jsonl').name)})"
        return f"it looks like {kind}: convert it with python -c {shlex.quote(program)}"
    if IMAGE_NAME.search(first):
        convert = f"jq -cR '{{image_path: .}}' {shlex.quote(path.name)} > {to}"
        return f'it looks like a list of images: set --caption-column "" and convert it with {convert}'
    return LINES


def _encoding(start: bytes) -> str:
    if start.startswith(BOM_UTF32):
        return "UTF-32"
    if start.startswith(BOM_UTF16):
        return "UTF-16"
    if start[:1] == start[2:3] == b"\0":
        return "UTF-32BE" if start[1:2] == b"\0" else "UTF-16BE"
    if start[1:2] == start[3:4] == b"\0":
        return "UTF-32LE" if start[2:3] == b"\0" else "UTF-16LE"
    return ""
