"""Settings from a YAML file, checked against a model's fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from vllm_annotate.errors import UsageError

MOST_BYTES = 256 << 10  # PyYAML takes a second for them; the longest prompts and schemas are far smaller
MOST_NESTING = 50
CONSTRUCTION = (ValueError, LookupError, AttributeError, TypeError)  # what PyYAML lets through, as for `!!int x`


class _Loader(yaml.SafeLoader):
    """Refuses keys that a mapping repeats, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises MarkedYAMLError."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice: keep one", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def read_fields(path: Path, what: str, model: type[BaseModel]) -> dict[str, Any]:
    """Returns the fields of `model` in a YAML file. Raises UsageError unless it is a mapping of known fields."""
    named, known = f"{what} {str(path)!r}", ", ".join(model.model_fields)
    fields = read_value(path, named, f"name the file with any of these fields: {known}")
    if not isinstance(fields, dict):
        raise UsageError(f"{named} must be a mapping with any of these fields: {known}")
    check_names(fields, named, model)
    return fields


def read_value(path: Path, named: str, remedy: str, most_bytes: int = MOST_BYTES) -> Any:
    """Returns the value in a YAML or JSON file. Raises UsageError that begins with `named`."""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{named} cannot be read: {getattr(error, 'strerror', None) or error}; correct the path"
        ) from None
    if len(content) > most_bytes:
        raise UsageError(f"{named} is over {most_bytes >> 10} KiB: {remedy}")
    return parsed(content, named)


def check_names(fields: Mapping[Any, Any], named: str, model: type[BaseModel]) -> None:
    """Raises UsageError for a name that is no field of `model`, which pydantic may ignore."""
    if unknown := [str(name) for name in fields if name not in model.model_fields]:
        known = ", ".join(model.model_fields)
        raise UsageError(f"{named} has unknown fields {', '.join(unknown)}; use any of {known}")


def parsed(content: bytes, named: str) -> Any:
    """Returns the value of a YAML text. Raises UsageError that begins with `named`."""
    try:
        text = content.decode("utf-8-sig")
        _check_events(text, named)
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except UnicodeDecodeError as error:
        raise UsageError(f"{named} is not YAML: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:  # its text would show the line, which may hold a key
        raise UsageError(f"{named} is not YAML: {_place(error.problem_mark)}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{named} is not YAML: {' '.join(str(error).split())}") from None
    except CONSTRUCTION as error:
        raise UsageError(f"{named} has a value that YAML cannot read ({type(error).__name__}): quote it") from None


def _check_events(text: str, named: str) -> None:
    """Raises UsageError for aliases, which can stand for gigabytes, and for nesting that would exhaust the stack."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            where = _place(event.start_mark)
            raise UsageError(f"{named}: {where}alias *{event.anchor} is not allowed: write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTING:
            raise UsageError(f"{named}: {_place(event.start_mark)}nested over {MOST_NESTING} levels deep")


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
