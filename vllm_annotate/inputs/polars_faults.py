"""I/O errors of Polars, as ordinary OSErrors."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl


@contextmanager
def polars_faults(path: Path) -> Iterator[None]:
    """Adds errno and file name to an I/O error of Polars, which has the number only in its text."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if getattr(error, "errno", None) is None and number is not None:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise
