"""Which rows belong to a shard."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_annotate.errors import UsageError
from vllm_annotate.inputs.sharding import in_shard
from vllm_annotate.storage.shard import Shard

PATHS = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.none(), max_size=50)


@given(PATHS, st.integers(1, 20))
def test_every_row_is_in_exactly_one_shard(paths: list[str | None], count: int) -> None:
    rows = pl.DataFrame({"image_path": pl.Series(paths, dtype=pl.String)})
    shards = [in_shard(Shard(number, count), pl.col("image_path")) for number in range(1, count + 1)]
    held = rows.select(sum(shard.cast(pl.Int32) for shard in shards).alias("times"))  # type: ignore[union-attr]
    assert held["times"].to_list() == [1] * len(paths)


def test_a_path_is_in_the_same_shard_in_every_version() -> None:
    paths = ["0001.jpg", "a/b.jpg", "猫.jpg", "", *(f"{number:06d}.jpg" for number in range(16_000))]
    rows = pl.DataFrame({"image_path": paths})
    sixteenths = [rows.select(in_shard(Shard(number, 16), pl.col("image_path"))).to_series() for number in range(1, 17)]
    told = [next(number for number, held in enumerate(sixteenths, 1) if held[row]) for row in range(4)]
    assert told == [16, 15, 16, 5], "other machines and earlier versions depend on these"
    assert all(900 < held.sum() < 1100 for held in sixteenths), "shards are about equally large"


def test_a_shard_is_written_k_of_n() -> None:
    assert Shard.parse(" 3/16 ") == Shard(3, 16)
    assert (Shard(3, 16).name, Shard(3, 8).name, str(Shard(3, 16))) == ("03-of-16", "3-of-8", "3/16")


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "a/b", "1/2/3", "-1/4", "1/99999", "٣/٤"])
def test_what_is_not_a_shard_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(UsageError, match="is not a shard: write K/N with 1 ≤ K ≤ N"):
        Shard.parse(text)
