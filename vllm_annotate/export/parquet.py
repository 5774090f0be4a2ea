"""Parquet with typed columns, for polars, pandas, DuckDB and Hugging Face datasets."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from vllm_annotate.export.about import About
from vllm_annotate.export.columns import schema_of, typed
from vllm_annotate.export.rows import Labeled
from vllm_annotate.inputs.polars_faults import polars_faults
from vllm_annotate.results.table import COLUMNS

SCHEMA: dict[str, Any] = COLUMNS | {"agreement": pl.Float64}
GROUP_ROWS = 5_000  # in memory at once: a row has some kilobytes


def record_of(row: Labeled, about: About) -> dict[str, Any]:
    """Returns the row as a record of the table."""
    width, height = row.size or (None, None)
    return {
        "image_path": row.path,
        "caption": row.caption,
        "rationale": row.rationale,
        "objects": [{"name": item.name, "bbox": [round(side) for side in item.box]} for item in row.objects],
        "width": width,
        "height": height,
        "flags": list(row.flags),
        "agreement": row.agreement,
        **typed(row, about.columns),
    }


def write(path: Path, rows: Iterable[Labeled], about: About) -> None:
    """Writes the table, a group of rows at a time."""
    schema: dict[str, Any] = SCHEMA | schema_of(about.columns)
    records = (record_of(row, about) for row in rows)

    def groups(*_: Any) -> Iterator[pl.DataFrame]:
        while group := list(islice(records, GROUP_ROWS)):
            yield pl.DataFrame(group, schema=schema)
        yield pl.DataFrame(schema=schema)  # a split may be empty

    with polars_faults(path):
        register_io_source(groups, schema=schema).sink_parquet(path, row_group_size=GROUP_ROWS)
