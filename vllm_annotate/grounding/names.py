"""Names of objects: which are the same, and what they are called together."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache


@lru_cache(maxsize=100_000)
def name_key(name: str) -> str:
    """Returns what names that count as the same have in common: NFKC, case-folded, white space collapsed."""
    # Case folding can undo the normal form, so it is restored.
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


@dataclass(frozen=True)
class Category:
    """Names that count as the same."""

    name: str  # the most frequent spelling
    count: int  # of objects


def categories_of(spellings: Counter[str], min_count: int = 1) -> dict[str, Category]:
    """Returns the categories with at least `min_count` objects by key, most frequent first, then by key."""
    groups: dict[str, list[str]] = {}
    for spelling in spellings:
        groups.setdefault(name_key(spelling), []).append(spelling)
    counts = {key: sum(spellings[name] for name in names) for key, names in groups.items()}
    frequent: Iterable[str] = (key for key, count in counts.items() if count >= min_count)
    ordered = sorted(frequent, key=lambda key: (-counts[key], key))
    return {key: Category(min(groups[key], key=lambda name: (-spellings[name], name)), counts[key]) for key in ordered}
