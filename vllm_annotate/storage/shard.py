"""A run's share of an input: which rows are its own, told by the image path alone, and where its answers go."""

import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import polars as pl

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

    def holds(self, image_path: pl.Expr) -> pl.Expr:
        """Whether a path is one of its own; a row without one is some shard's, so that it is counted once."""
        return image_path.fill_null("").map_batches(self._held, return_dtype=pl.Boolean, is_elementwise=True)

    def _held(self, paths: pl.Series) -> pl.Series:
        # Not the hash of polars, which another version may change, nor a CRC: of numbered names it fills few shards.
        hashes = (int.from_bytes(blake2b(path.encode(), digest_size=8).digest()) for path in paths)
        return pl.Series(paths.name, [hash_ % self.count == self.number - 1 for hash_ in hashes], dtype=pl.Boolean)


def shards_folder(output: Path) -> Path:
    """Where the shards of an output lie until they are merged."""
    return output.with_name(output.stem + ".shards")
