"""Names of objects, as numbers: equal for names that differ only in case, width or spaces, or are synonyms."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_annotate.errors import UsageError
from vllm_annotate.grounding.names import name_key
from vllm_annotate.storage.yaml_fields import read_value

MOST_BYTES = 1 << 20


class Groups(BaseModel):
    """The groups of a synonyms file."""

    model_config = ConfigDict(strict=True)
    groups: list[list[str]]


class Names:
    """Numbers names from 0. A number stands for all names that count as equal; its text is the first of them."""

    def __init__(self, synonyms: Path | None = None) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}  # both names as written and normalised ones
        for group in read_groups(synonyms) if synonyms else ():
            number = self.number(group[0])
            self._numbers |= {name_key(name): number for name in group}

    def number(self, name: str) -> int:
        """The number of a name."""
        number = self._numbers.get(name)
        if number is None:
            same = name_key(name)
            number = self._numbers.get(same)
            if number is None:
                number = self._numbers[same] = len(self.texts)
                self.texts.append(" ".join(name.split()))
            self._numbers[name] = number
        return number


def read_groups(path: Path) -> list[list[str]]:
    """The groups of equal names in a YAML or JSON file. Raises UsageError."""
    named = f"--synonyms {str(path)!r}"
    rule = "write a list of groups of equal names, such as [[sofa, couch], [tv, television]]"
    value = read_value(path, named, rule, MOST_BYTES)
    try:
        groups = Groups(groups=value).groups
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = "".join(f"[{step}]" for step in problem["loc"][1:])
        raise UsageError(f"{named} {place}: {problem['msg']}; {rule}, and quote names such as yes and 1") from None
    _check_apart([group for group in groups if group], named)
    return [group for group in groups if group]


def _check_apart(groups: list[list[str]], named: str) -> None:
    seen: dict[str, Any] = {}
    for number, group in enumerate(groups):
        for name in group:
            if seen.setdefault(name_key(name), number) != number:
                raise UsageError(f"{named} has {name!r} in two groups: join the groups, or remove it from one")
