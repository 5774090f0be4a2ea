"""Compares images in a tar, in a Parquet file and in a bucket with single files.

`python -m benchmarks.containers [images] [rounds]`. Each form holds the same images: the part of the web's mix that
needs no resizing, so that reading counts for most. Whole runs without Prefect, in turn, against a server with 64 slots
that answers in 0.2 s: it is the limit as long as the client can follow. Processor time leaves out that of a run over
one image of the same form, which is start and proof. It includes the report, which shows at most 200, in random order,
whatever the number of images. Server, store and client share this machine's cores.
"""

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import datasets
import orjson
import webdataset
from datasets.table import embed_table_storage

from benchmarks.canned_server import MODEL
from benchmarks.capacity import look, slots_server
from benchmarks.images import LEFT_OUT, described, draw_mix, within_budget, write_input
from benchmarks.programs import IN_FLIGHT, Cost, measured, spread
from demo.processes import stand_in
from stand_in.gateway import PROCESS, nginx
from stand_in.ports import free_port

PROGRAM = Path(sys.executable).with_name("vllm-annotate")
ANSWERS = ("0.2", "0", "0")  # seconds, and no spread
FILES = "files"  # the form that others are compared with
ALL, ONE = "all", "one"  # names of folders, and of buckets
STORE = (
    PROCESS
    + """
user root;  # temporary folders are closed to others
http {{
    access_log off;
    keepalive_requests 1000000;
    server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""
)
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


class Measurement(NamedTuple):
    """What one run took."""

    images_per_second: float  # of the whole run
    busy: float  # percent of the slots, from the first request to the last answer
    milliseconds: float  # of processor time an image
    mebibytes: float  # at the peak


def main(images: int = 2000, rounds: int = 3) -> None:
    """Prints a line per run, and a table of medians and extremes."""
    with tempfile.TemporaryDirectory(prefix="containers-") as name:
        folder = Path(name)
        distinct = within_budget(draw_mix(folder / "drawn"))
        for bucket, count in ((ALL, images), (ONE, 1)):
            write_forms(folder / bucket, distinct, count)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        with stand_in("--model", MODEL) as looking, slots_server(*ANSWERS, looking) as url, object_store(folder):
            found = compare(folder, url, images, rounds)
    packages = ", ".join(f"{package} {version(package)}" for package in ("webdataset", "datasets", "polars", "s3fs"))
    print(f"\n{images:,} images, {rounds} rounds, {os.cpu_count()} cores, {IN_FLIGHT} in flight; {LEFT_OUT}.")
    print(f"{packages}; images: {described('within the budget')}.")
    print("The bucket is a folder that nginx serves on the same cores: no network, and no signatures are checked.")
    print_table(found)


def write_forms(folder: Path, distinct: Sequence[Path], count: int) -> None:
    """Writes the same images as files, as a tar and as Parquet."""
    source = write_input(folder, distinct, count)
    images = source.with_name("images")
    links = images.rename(folder / "links")
    shutil.copytree(links, images)  # each as its own file, as in a tar: links would stay in the processor's cache
    shutil.rmtree(links)
    rows = [orjson.loads(line) for line in source.open("rb")]
    with webdataset.TarWriter(str(folder / "images.tar")) as tar:
        for row in rows:
            path = images / row["image_path"]
            content = {path.suffix.removeprefix("."): path.read_bytes(), "txt": row["caption"]}
            tar.write({"__key__": path.stem, **content})
    columns = {"image": [str(images / row["image_path"]) for row in rows], "caption": [row["caption"] for row in rows]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).with_format("arrow")
    datasets.disable_progress_bars()
    data.map(embed_table_storage, batched=True).with_format(None).to_parquet(str(folder / "images.parquet"))


def forms(folder: Path) -> dict[str, list[str]]:
    """The options by which a run finds the images in each form."""
    rows, bucket = str(folder / "input.jsonl"), f"s3://{folder.name}"
    return {
        FILES: ["--input", rows, "--image-root", str(folder / "images")],
        "tar": ["--input", str(folder / "images.tar")],
        "Parquet": ["--input", str(folder / "images.parquet")],
        "files in a bucket": ["--input", rows, "--image-root", f"{bucket}/images"],
        "tar in a bucket": ["--input", f"{bucket}/images.tar"],
    }


@contextmanager
def object_store(folder: Path) -> Iterator[None]:
    """Serves the folders in a folder as buckets of S3, to be read only."""
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(STORE.format(folder=folder, port=port))
    with nginx(configuration, port) as url:
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": url}
        yield


def compare(folder: Path, url: str, images: int, rounds: int) -> dict[str, list[Measurement]]:
    """Measures all forms in turn; every other round goes backwards."""
    found: dict[str, list[Measurement]] = {form: [] for form in forms(folder)}
    for number in range(rounds):
        for form in list(found)[:: -1 if number % 2 else 1]:
            least = run(folder, forms(folder / ONE)[form], url)
            look(url)
            cost = run(folder, forms(folder / ALL)[form], url)
            seconds = cost.processor_seconds - least.processor_seconds
            busy = 100 * look(url)["to_last_answer"]
            one = Measurement(images / cost.wall_seconds, busy, 1000 * seconds / images, cost.peak_mebibytes)
            found[form].append(one)
            print(
                f"{form}: {one.images_per_second:.0f} images/s, slots busy {one.busy:.0f} %, {one.milliseconds:.2f} ms "
                f"per image, {one.mebibytes:.0f} MiB; one image {least.processor_seconds:.2f} s of processor time",
                flush=True,
            )
    return found


def run(folder: Path, given: list[str], url: str) -> Cost:
    """Annotates the images of an input, and returns what that costs."""
    outputs = folder / "outputs"
    outputs.mkdir()
    server = ("--api-base", f"{url}/v1", "--max-concurrency", str(IN_FLIGHT), "--without-prefect")
    command = [str(PROGRAM), "annotate", *given, "--output", str(outputs / "labeled.jsonl"), *server]
    cost = measured(command, folder / "log")
    shutil.rmtree(outputs)
    return cost


def print_table(found: dict[str, list[Measurement]]) -> None:
    """Prints a row per form. Ratios are those of a round."""
    print("\n| form | images/s | ÷ files | slots busy, % | processor ms an image | ÷ files | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    for form, each in found.items():
        pairs = list(zip(each, found[FILES], strict=True))
        rate = spread([ours.images_per_second / theirs.images_per_second for ours, theirs in pairs])
        cost = spread([ours.milliseconds / theirs.milliseconds for ours, theirs in pairs])
        rates, busy, costs, peaks = (list(values) for values in zip(*each, strict=True))
        print(
            f"| {form} | {spread(rates)} | {rate} | {statistics.median(busy):.1f} | {spread(costs)} | {cost} | "
            f"{statistics.median(peaks):.0f} |"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
