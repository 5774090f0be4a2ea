"""Which images and objects of an output are exported, and into which split."""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vllm_annotate.errors import UsageError
from vllm_annotate.export.rows import Labeled, Named
from vllm_annotate.grounding.box_checks import FLAGS
from vllm_annotate.grounding.names import name_key

ANY = "any"
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def digest_of(image_path: str) -> int:
    """Returns 64 bits of BLAKE2b of an image path."""
    return int.from_bytes(hashlib.blake2b(image_path.encode(errors="replace"), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Selection:
    """What is left out. The reasons that its methods return are for people."""

    without_flags: frozenset[str] = frozenset()  # ANY for all
    min_size: float = 0  # share of the image
    names: frozenset[str] | None = None  # keys of names
    min_agreement: float | None = None

    def against_image(self, row: Labeled) -> str:
        """Why the image is left out; empty if it is not. A row without an agreement was not audited, and stays."""
        for flag in row.flags:
            if flag in self.without_flags or ANY in self.without_flags:
                return f"flag {flag}"
        if self.min_agreement is not None and row.agreement is not None and row.agreement < self.min_agreement:
            return f"agreement below {self.min_agreement:g}"
        return ""

    def against_object(self, item: Named) -> str:
        """Why the object is left out; empty if it is not."""
        if item.share < self.min_size:
            return f"under {self.min_size:g} of the image"
        return "name not chosen" if self.names is not None and name_key(item.name) not in self.names else ""


@dataclass(frozen=True)
class Splits:
    """Shares by name, which add up to 1; empty if everything goes into one file."""

    shares: dict[str, float] = field(default_factory=dict)

    def of(self, image_path: str) -> str:
        """The split of an image, by a hash of its path: the same in every export, whatever other rows there are."""
        if not self.shares:
            return ""
        place, total = digest_of(image_path) / 2**64, 0.0
        for name, share in self.shares.items():
            total += share
            if place < total:
                return name
        return next(reversed(self.shares))  # the sum may be a rounding error below 1

    def files(self, to: Path) -> dict[str, Path]:
        """The file of each split: `boxes.train.json` and so on beside `boxes.json`."""
        if not self.shares:
            return {"": to}
        return {name: to.with_name(f"{to.stem}.{name}{to.suffix}") for name in self.shares}


def read_selection(
    without_flags: Iterable[str], min_size: str | None, names: list[str], min_agreement: str | None
) -> Selection:
    """Returns the selection of these options. Raises UsageError."""
    flags = frozenset(without_flags)
    if unknown := sorted(flags - FLAGS.keys() - {ANY}):
        raise UsageError(f"--without-flag {unknown[0]!r} is not a flag: use one of {', '.join([ANY, *FLAGS])}")
    return Selection(
        without_flags=flags,
        min_size=share("--min-size", min_size) if min_size is not None else 0,
        names=frozenset(map(name_key, read_names(names))) if names else None,
        min_agreement=share("--min-agreement", min_agreement) if min_agreement is not None else None,
    )


def share(option: str, text: str) -> float:
    """Returns a number from 0 to 1. Raises UsageError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"{option} {text!r} is not a share: write a number from 0 to 1")
    return value


def read_names(given: list[str]) -> list[str]:
    """Returns the names, or those in the file that is named, one per line. Raises UsageError."""
    path = Path(given[0])
    if len(given) > 1 or not path.is_file():
        return given
    try:
        found = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except ValueError:
        raise UsageError(f"--names {given[0]!r} is not UTF-8 text: write one name per line") from None
    if not found:
        raise UsageError(f"--names {given[0]!r} is empty: write one name per line")
    return found


def read_splits(given: list[str]) -> Splits:
    """Returns the splits of `train=0.9,val=0.1`. Raises UsageError."""
    shares: dict[str, float] = {}
    for text in filter(None, ",".join(given).split(",")):
        name, _, value = (part.strip() for part in text.partition("="))
        if not SPLIT_NAME.fullmatch(name) or name in shares:
            raise UsageError(
                f"--split {text!r}: give each split one name of letters, digits, - and _, as in train=0.9,val=0.1"
            )
        shares[name] = share(f"--split {name}", value)
    if shares and not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise UsageError(
            f"--split {','.join(given)!r} adds up to {sum(shares.values()):g}: make the shares add up to 1"
        )
    return Splits(shares)
