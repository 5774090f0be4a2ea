"""Settings from a YAML file, checked against a model's fields."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from vllm_annotate.errors import UsageError


def read_fields(path: Path, what: str, model: type[BaseModel]) -> dict[str, Any]:
    """Returns the fields of `model` in a YAML file. Raises UsageError unless it is a mapping of known fields."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    known = ", ".join(model.model_fields)
    if not isinstance(fields, dict):
        raise UsageError(f"{what} {str(path)!r} must be a mapping with any of these fields: {known}")
    if unknown := [str(name) for name in fields if name not in model.model_fields]:
        raise UsageError(f"{what} {str(path)!r} has unknown fields {', '.join(unknown)}; use any of {known}")
    return fields
