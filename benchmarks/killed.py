"""Runs over tars, Parquet files and a bucket that are killed again and again: nothing is lost, nothing answered twice.

`python -m benchmarks.killed [IMAGES KILLS]`, by default 10,000 images in 10 files and 20 kills of each form. Tars are
written by the webdataset package, Parquet files by the datasets library; the bucket is moto's server, and holds input
and output. A run is killed after a random share of the images; the next one resumes it. At most the requests in flight
are sent again.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import fsspec
import orjson
import webdataset
from datasets.table import embed_table_storage

from benchmarks.containers import CREDENTIALS, PROGRAM
from demo.processes import stand_in
from demo.scenes import draw_scene
from stand_in.ports import free_port

FILES, IN_FLIGHT, DISTINCT = 10, 16, 20


def write_files(folder: Path, images: int) -> None:
    """Writes the same images as ten tars and as ten Parquet files."""
    rng, drawn = random.Random(0), []
    datasets.disable_progress_bars()
    for number in range(DISTINCT):
        drawn.append(folder / f"{number}.jpg")
        draw_scene(rng, 196, 168, 1).image.save(drawn[-1], quality=90)
    for form in ("tars", "parquet"):
        folder.joinpath(form).mkdir()
    for number in range(FILES):
        pictures = [drawn[at % DISTINCT] for at in range(images // FILES)]
        write_tar(folder / "tars" / f"{number:05d}.tar", pictures)
        write_parquet(folder / "parquet" / f"train-{number:05d}-of-{FILES:05d}.parquet", pictures)


def write_tar(path: Path, pictures: Sequence[Path]) -> None:
    """Writes a WebDataset tar."""
    with webdataset.TarWriter(str(path)) as tar:
        for number, picture in enumerate(pictures):
            tar.write({"__key__": f"{number:09d}", "jpg": picture.read_bytes(), "txt": f"caption {number}"})


def write_parquet(path: Path, pictures: Sequence[Path]) -> None:
    """Writes a Parquet file as `push_to_hub` does, with the images inside."""
    columns = {"image": list(map(str, pictures)), "caption": [f"caption {number}" for number in range(len(pictures))]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).with_format("arrow")
    data.map(embed_table_storage, batched=True).with_format(None).to_parquet(str(path))


@contextmanager
def bucket(folder: Path) -> Iterator[Any]:
    """An object store with the tars in a bucket."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": url}
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        fs = fsspec.filesystem("s3", use_listings_cache=False)
        fs.mkdir("killed")
        fs.put(f"{folder / 'tars'}/", "killed/tars/", recursive=True)
        yield fs
    finally:
        process.terminate()
        process.wait()


def asked(url: str) -> int:
    """The requests that the stand-in has finished, as its metrics have them."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:  # noqa: S310 - the stand-in's
        found = re.findall(r"^vllm:request_success_total\S* (\S+)", response.read().decode(), re.MULTILINE)
    return int(sum(map(float, found)))


def run_until_done(given: Sequence[str], url: str, images: int, kills: int, log: Path) -> tuple[float, int]:
    """Annotates, killed at random; returns the seconds of all runs, and how many were killed."""
    killed = 0
    rng, begun = random.Random(1), time.monotonic()
    command = [str(PROGRAM), "annotate", *given, "--api-base", f"{url}/v1", "--without-prefect"]
    command += ["--max-concurrency", str(IN_FLIGHT)]
    first = asked(url)
    for at in [*sorted(rng.uniform(0, images) for _ in range(kills)), float("inf")]:
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        while process.poll() is None:
            if asked(url) - first >= at:
                process.kill()
            time.sleep(0.05)
        killed += process.wait() == -signal.SIGKILL
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(log.read_text()[-3000:])
    return time.monotonic() - begun, killed


def check(form: str, lines: Iterator[bytes], images: int, sent: int, seconds: float, kills: int) -> bool:
    """Prints what came of a form; returns whether every image is answered once."""
    answered = Counter(orjson.loads(line)["image_path"] for line in lines)
    lost, twice = images - len(answered), answered.total() - len(answered)
    again = sent - images
    print(
        f"{form}: {images:,} images in {FILES} files, killed {kills} times: {lost} lost, {twice} twice; {again} "
        f"finished requests more than images, proofs of the server included; {seconds:.0f} s",
        flush=True,
    )
    return not (lost or twice)


def main(images: int = 10_000, kills: int = 20) -> None:
    """Prints a line per form."""
    good = []
    with tempfile.TemporaryDirectory(prefix="killed-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        write_files(folder, images)
        with bucket(folder) as fs:
            places = {"tars": folder / "tars", "Parquet": folder / "parquet", "tars in a bucket": "s3://killed/tars"}
            for form, place in places.items():
                output = "s3://killed/labeled" if isinstance(place, str) else folder / f"labeled-{form}"
                with stand_in("--canned") as url:
                    given = ["--input", str(place), "--output", str(output)]
                    seconds, killed = run_until_done(given, url, images, kills, folder / "log")
                    sent = asked(url)
                files = fs.find("killed/labeled") if isinstance(output, str) else sorted(output.glob("*.jsonl"))
                read = fs.cat_file if isinstance(output, str) else Path.read_bytes
                lines = (line for file in files for line in read(file).splitlines())
                good.append(check(form, lines, images, sent, seconds, killed))
    if not all(good):
        raise SystemExit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
