"""Which rows of an input belong to a shard. The image path alone decides: the same on every machine."""

from hashlib import blake2b

import numpy as np
import polars as pl

from vllm_annotate.storage.shard import Shard


def in_shard(shard: Shard, image_path: pl.Expr) -> pl.Expr:
    """Whether a path belongs to the shard. A row without a path belongs to one shard too, and is counted once."""

    def held(paths: pl.Series) -> pl.Series:
        # Not Polars' hash, which may change between versions, nor a CRC, which puts numbered names into few shards.
        digests = b"".join([blake2b(path, digest_size=8).digest() for path in paths.cast(pl.Binary).to_list()])
        hashes = np.frombuffer(digests, ">u8")
        return pl.Series(paths.name, hashes % shard.count == shard.number - 1, dtype=pl.Boolean)

    return image_path.fill_null("").map_batches(held, return_dtype=pl.Boolean, is_elementwise=True)
