"""The place of an image or a file in a random order that is the same on every machine."""

from hashlib import blake2b


def rank_of(name: str, seed: int) -> int:
    """The place among others in the order of this seed. Not Polars' hash, which may change between versions."""
    key = seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(blake2b(name.encode(errors="replace"), digest_size=8, key=key).digest())
