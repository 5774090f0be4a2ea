"""Some of an input's images: the first, or a random sample that stays the same when the input grows or is resumed."""

from dataclasses import dataclass

import polars as pl

from vllm_annotate.inputs.ranks import rank_of


@dataclass(frozen=True)
class Selection:
    """The first `limit` distinct images, or `sample` at random; 0 for all."""

    limit: int = 0
    sample: int = 0
    seed: int = 0

    def __bool__(self) -> bool:
        return bool(self.limit or self.sample)

    def of(self, distinct: pl.LazyFrame) -> pl.LazyFrame:
        """The selected rows of a frame with columns line and image_path, in input order.

        A sample has the paths of the smallest hashes: a larger one contains it, and rows that come later replace few.
        """
        if self.limit:
            return distinct.head(self.limit)
        if self.sample:
            ranked = distinct.with_columns(rank=self._rank(pl.col("image_path")))
            return ranked.bottom_k(self.sample, by=["rank", "line"]).drop("rank").sort("line")
        return distinct

    def _rank(self, image_path: pl.Expr) -> pl.Expr:
        def ranks(paths: pl.Series) -> pl.Series:
            return pl.Series(paths.name, [rank_of(path, self.seed) for path in paths], dtype=pl.UInt64)

        return image_path.map_batches(ranks, return_dtype=pl.UInt64, is_elementwise=True)


ALL = Selection()
