"""An object store that speaks S3, on loopback: moto's server, as a process."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.conftest import Job

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    deadline = time.monotonic() + 60
    while not (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield found[1]
    process.terminate()
    process.wait(30)


@dataclass
class Bucket:
    """A bucket, and a job whose files lie in it."""

    url: str
    fs: Any

    def lines(self, name: str) -> bytes:
        """The content of an object; nothing where there is none."""
        path = f"{self.url}/{name}"
        return bytes(self.fs.cat_file(path)) if self.fs.exists(path) else b""

    def put(self, job: Job) -> None:
        """Uploads input and images."""
        self.fs.put_file(str(job.input), f"{self.url}/input.jsonl")
        for name in job.names:
            self.fs.put_file(str(job.images / name), f"{self.url}/images/{name}")

    def arguments(self, server: str, *more: str) -> list[str]:
        """The command line of its job."""
        files = {"--input": "input.jsonl", "--image-root": "images", "--output": "out/labeled.jsonl"}
        paths = [word for option, name in files.items() for word in (option, f"{self.url}/{name}")]
        return [*paths, "--api-base", f"{server}/v1", *more]


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of its own; this machine's copies lie in a folder of their own."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    fs = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    name = f"bucket-{time.monotonic_ns()}"
    fs.mkdir(name)
    yield Bucket(f"s3://{name}/corpus", fs)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def make_remote_job(make_job: Callable[..., Job], bucket: Bucket) -> Callable[[int], Job]:
    """Makes a job and uploads it."""

    def make(count: int) -> Job:
        job = make_job(count)
        bucket.put(job)
        return job

    return make
