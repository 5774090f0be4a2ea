"""Writes samples to Parquet files in the work folder, 15 minutes each, and reads them."""

import io
import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from vllm_annotate.storage.atomic import replacing
from vllm_annotate.telemetry.history import History

SAMPLES_A_FILE = 900
WRITE_SECONDS = 60  # a kill loses at most this much

# A row is one sample of one subject; columns of other subjects are null. Units are in the names; shares are 0 to 1.
SCHEMA: dict[str, Any] = {
    "at": pl.Datetime("ms", "UTC"),
    "subject": pl.String,  # gpu, server or client
    "name": pl.String,  # "0 NVIDIA H100", the endpoint's URL, or the host
    "utilisation": pl.Float32,  # percent
    **dict.fromkeys(
        ("memory_used_mib", "memory_total_mib", "power_watts", "temperature_c", "sm_clock_mhz", "power_capped",
         "heat_throttled"), pl.Float32),
    "energy_joules": pl.Float64,
    "up": pl.Float32,
    **dict.fromkeys(
        ("in_flight", "limit", "running", "waiting", "kv_cache_usage", "preemptions_per_second",
         "prompt_tokens_per_second", "generation_tokens_per_second", "queue_seconds", "latency_seconds"), pl.Float32),
    **dict.fromkeys(
        ("ready", "unasked", "images_per_second", "failures_per_second", "prepare_seconds", "cpu_cores",
         "peak_memory_mib", "lag_seconds"), pl.Float32),
}  # fmt: skip


class SampleLog:
    """Buffers rows of SCHEMA; call `write` in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._samples = 0  # in the current file
        self._written_at = time.monotonic()
        self._path: Path | None = None
        self._writing = threading.Lock()

    def add(self, at: datetime, rows: Mapping[tuple[str, str], Mapping[str, float | None]]) -> None:
        """Adds one sample: (subject, name) → values."""
        if self._samples >= SAMPLES_A_FILE:
            self._rows, self._samples, self._path = [], 0, None
        self._samples += 1
        self._rows += [{"at": at, "subject": subject, "name": name, **row} for (subject, name), row in rows.items()]

    @property
    def is_due(self) -> bool:
        """Whether it is time to write."""
        return self._samples >= SAMPLES_A_FILE or time.monotonic() - self._written_at >= WRITE_SECONDS

    def write(self) -> None:
        """Rewrites the current file with all its rows. Raises OSError."""
        with self._writing:  # the final write may overlap with another
            rows = list(self._rows)
            if not rows:
                return
            self._written_at = time.monotonic()
            if self._path is None:
                self._folder.mkdir(exist_ok=True)
                self._path = self._folder / f"{rows[0]['at'].astimezone(UTC):%Y%m%d-%H%M%S}.parquet"
            # Through memory: on a full disk, Polars does not raise OSError.
            parquet = io.BytesIO()
            pl.DataFrame(rows, schema=SCHEMA).write_parquet(parquet)
            with replacing(self._path) as file:
                file.write(parquet.getvalue())


@dataclass
class Recorded:
    """The telemetry of a run."""

    histories: dict[tuple[str, str], History]  # (gpu, server or client; its name) → its samples
    samples: int

    @property
    def notes(self) -> list[str]:
        """What could not be measured, and why."""
        return []


def read_samples(folder: Path, since: str, seconds: float = math.inf) -> Recorded:
    """Reads the samples of so many seconds since a time (ISO 8601; "" reads all). Skips unreadable files."""
    frames = []
    for path in sorted(folder.glob("*.parquet")):
        with suppress(pl.exceptions.PolarsError, OSError):
            frames.append(
                pl.read_parquet(path, glob=False).select(pl.col(name).cast(of) for name, of in SCHEMA.items())
            )
    rows = pl.concat(frames or [pl.DataFrame(schema=SCHEMA)]).sort("at", maintain_order=True)
    if since:
        start = datetime.fromisoformat(since)
        rows = rows.filter(pl.col("at") >= start)
        if seconds < math.inf:
            rows = rows.filter(pl.col("at") <= start + timedelta(seconds=seconds + 1))  # `since` is cut to a second
    histories: dict[tuple[str, str], History] = {}
    for row in rows.iter_rows(named=True):
        key, second = (row.pop("subject"), row.pop("name")), (row.pop("at") - rows["at"][0]).total_seconds()
        histories.setdefault(key, History()).add(second, row)
    return Recorded(histories, rows["at"].n_unique())
