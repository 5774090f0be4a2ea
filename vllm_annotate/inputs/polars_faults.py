"""What Polars raises, as others raise it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl


@contextmanager
def polars_faults(path: Path) -> Iterator[None]:
    """Gives an OSError of Polars, which has the number in its text alone, the errno and file that others have."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if getattr(error, "errno", None) is None and number is not None:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise
