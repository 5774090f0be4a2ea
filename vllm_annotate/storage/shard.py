"""A run's share of an input: how it is written, and where its answers go."""

import re
from dataclasses import dataclass
from pathlib import Path

from vllm_annotate.errors import UsageError

MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """`number` of `count`, from 1. The same path is in the same shard on every machine and in every version."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A shard written as `3/16`. Raises UsageError for anything else."""
        found = re.fullmatch(r"\s*(\d{1,5})\s*/\s*(\d{1,5})\s*", text, re.ASCII)
        number, count = (int(digits) for digits in found.groups()) if found else (0, 0)
        if not 1 <= number <= count <= MOST_SHARDS:
            raise UsageError(
                f"shard {text!r} is none: write number/count, such as 3/16 for the third of sixteen (at most "
                f"{MOST_SHARDS})"
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """Names its files, such as 03-of-16."""
        return f"{self.number:0{len(str(self.count))}d}-of-{self.count}"


def shards_folder(output: Path) -> Path:
    """Where the shards of an output lie until they are merged."""
    return output.with_name(output.stem + ".shards")
