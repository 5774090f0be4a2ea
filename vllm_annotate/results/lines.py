"""Lines of the output and the failures file: our fields, and the input's other columns as written."""

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_annotate.errors import ImageFailure
from vllm_annotate.images.prepare import PreparedImage
from vllm_annotate.inputs.rows import Row
from vllm_annotate.storage.json_text import dumped, object_line, raw_members, text_member

OUTPUT_FIELDS = {  # what each means
    "image_path": "as in the input, also if its column has another name",
    "caption": "as in the input, also if its column has another name",
    "vlm_output": "the model's raw text",
    "annotations": "`rationale` and `objects`; `null` if the text could not be parsed",
    "objects": "a list of `name` and `bbox`; empty if the text could not be parsed. `bbox` is `[x1, y1, x2, y2]`, "
    "integers 0–1000 of the upright image, x1 < x2 and y1 < y2",
    "width": "of the upright image, pixels",
    "height": "of the upright image, pixels",
    "sent_size": "width and height of the image that the model saw, pixels",
    "sent_as": "`original`: the file's own pixels, without metadata other than a colour profile; `jpeg`: a JPEG made "
    "from it, upright and resized",
    "flags": "only if something was flagged: see the next table",
    "parse_stage": "only if the text was not valid JSON as it stood: `repaired` or `tags`",
    "attempts": "only if the model was asked more than once",
    "annotations_error": "`true`, only if the text could not be parsed or contained no usable box",
}
OUR_FIELDS = tuple(OUTPUT_FIELDS)[2:]  # what stands beside the input's own columns
OUR_FAILURE = {"kind", "message", "attempts"}
_FAILURE = '"failure"'


def answer_line(row: Row, image: PreparedImage, vlm_output: str, parsed: Mapping[str, Any]) -> bytes:
    """Returns the output line of an answered image: image_path, caption, the input's other columns, our fields.

    `parsed` has the fields of the parsed answer. Input columns with the name of one of our fields are dropped: an old
    flag would look like ours.
    """
    sizes = {"width": image.width, "height": image.height, "sent_size": [image.sent_width, image.sent_height]}
    ours = {"vlm_output": vlm_output} | dict(parsed) | sizes | {"sent_as": image.sent_as}
    return object_line(*_row_members(row), dumped(ours))


def begins_with_row(line: bytes, row: Row) -> bool:
    """Whether an output line is an answer to exactly this row."""
    return line.startswith(object_line(*_row_members(row), b'"vlm_output":').removesuffix(b"}\n"))


def _row_members(row: Row) -> list[str | bytes]:
    """The members of the line that come from the input."""
    identity = {"image_path": row.image_path}
    if row.has_caption or "caption" not in raw_members(row.text):
        identity["caption"] = row.caption
    return [dumped(identity), *other_members(row.text, *identity, *OUR_FIELDS, *row.dropped)]


def other_members(text: str, *names: str) -> Iterator[str]:
    """Yields the members of a row, as written, except those with these names.

    The failure in a row of a failures file is dropped; an input column named failure is restored.
    """
    for name, (written, value) in raw_members(text).items():
        failure = raw_members(value) if name == "failure" and value[0] == "{" else {}
        if failure.keys() >= OUR_FAILURE:
            written, value = failure.get("column", ("", ""))
        if name not in names and written:
            yield f"{written if name != 'failure' else _FAILURE}:{value}"


def failure_line(text: str, image_path: str, failure: ImageFailure) -> bytes:
    """Returns the failures line of an image: its image path, the input row as written, and the failure.

    An input column named failure is saved inside ours.
    """
    details = {"kind": failure.kind, "message": failure.message, "attempts": failure.attempts}
    own = [member.partition(":")[2] for member in other_members(text) if member.startswith(f"{_FAILURE}:")]
    why = b",".join([dumped(details), *(f'"column":{value}'.encode() for value in own)])
    others = other_members(text, "image_path", "failure")
    return object_line(dumped({"image_path": image_path}), *others, b'"failure":{' + why + b"}")


def path_of(line: bytes) -> str | None:
    """Returns the image path of a JSON line; None for a torn line or one without an image path."""
    return text_member(line.decode(errors="replace"), "image_path")
