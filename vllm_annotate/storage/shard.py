"""A shard, written as 3/16, and the folder of its answers."""

import re
from dataclasses import dataclass
from pathlib import Path

from vllm_annotate.errors import UsageError

MAX_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """`number` (from 1) of `count`. An image path is in the same shard on every machine and in every version."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parses a shard written as `3/16`. Raises UsageError for anything else."""
        found = re.fullmatch(r"\s*(\d{1,5})\s*/\s*(\d{1,5})\s*", text, re.ASCII)
        number, count = (int(digits) for digits in found.groups()) if found else (0, 0)
        if not 1 <= number <= count <= MAX_SHARDS:
            raise UsageError(
                f"{text!r} is not a shard: write K/N with 1 ≤ K ≤ N ≤ {MAX_SHARDS}, such as 3/16 for the third of "
                "sixteen"
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """The name in its files, such as 03-of-16."""
        return f"{self.number:0{len(str(self.count))}d}-of-{self.count}"


def shards_folder(output: Path) -> Path:
    """Returns the folder of an output's shards until they are merged."""
    return output.with_name(output.stem + ".shards")
