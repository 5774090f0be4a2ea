"""Two machines and an object store: late uploads overwrite nothing that changed meanwhile."""

import asyncio
import hashlib
import http.client
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest

from tests.support.s3 import Bucket
from vllm_annotate.inputs.plan_file import Chunk
from vllm_annotate.results.mirror import Mirror
from vllm_annotate.results.output_files import output_files
from vllm_annotate.storage.downloads import local_copy
from vllm_annotate.storage.uploads import ObjectChangedError, upload, version_there
from vllm_annotate.threads import in_thread

pytestmark = pytest.mark.deployed
Machine = Callable[..., Mirror]


@dataclass
class Sleepy:
    """A proxy to the store that can delay uploads."""

    url: str
    held: str = ""  # part of the paths of delayed uploads
    arrived: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def sleepy(store: str) -> Iterator[Sleepy]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PUT" and way.held and way.held in self.path:
                way.arrived.set()
                way.release.wait(60)
            there = http.client.HTTPConnection(urlsplit(store).netloc, timeout=60)
            there.request(self.command, self.path, body, dict(self.headers))
            answer = there.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            there.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815 - the library's names

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    way = Sleepy(f"http://127.0.0.1:{server.server_port}")
    try:
        yield way
    finally:
        way.release.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def machine(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes the local copy of the output on a machine of this name."""

    def of(name: str, endpoint: str | None = None) -> Mirror:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))
        if endpoint is not None:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        return Mirror(f"{bucket.url}/labeled.jsonl")

    return of


def row(path: str, **more: Any) -> bytes:
    return json.dumps({"image_path": path} | more).encode() + b"\n"


def add(mirror: Mirror, line: bytes) -> None:
    """Does what a merge does."""
    with mirror.workspace.output.open("ab") as file:
        file.write(line)


def chunk(number: int, *paths: str) -> Chunk:
    return Chunk(number, 0, len(paths), hashlib.blake2b("\0".join(paths).encode(), digest_size=16).hexdigest())


def parts_of(bucket: Bucket) -> dict[str, bytes]:
    names = bucket.fs.find(f"{bucket.url}/labeled.work/parts")
    return {name.rpartition("/")[2]: bucket.fs.cat_file(name) for name in names}


@pytest.mark.parametrize("before", [b"", row("old.jpg")])
def test_a_late_upload_does_not_replace_what_the_next_machine_wrote(
    bucket: Bucket, machine: Machine, s3_server: str, before: bytes
) -> None:
    if before:
        bucket.fs.pipe_file(f"{bucket.url}/labeled.jsonl", before)
    with sleepy(s3_server) as way, ThreadPoolExecutor(1) as threads:
        first = machine("first", way.url)
        with first:
            add(first, row("first.jpg"))
            way.held = "labeled.jsonl"
            publishing = threads.submit(first.publish)
            assert way.arrived.wait(30)
            bucket.fs.rm_file(f"{bucket.url}/labeled.work/lease")  # as if it had slept for a minute
            with (second := machine("second", s3_server)):
                add(second, row("second.jpg"))
                second.publish()
            way.release.set()
            with pytest.raises(ObjectChangedError, match="was changed by another program during this run"):
                publishing.result()
            assert bucket.lines("labeled.jsonl") == before + row("second.jpg")
        way.held = ""
        with (again := machine("first", way.url)):
            again.publish()
    assert bucket.lines("labeled.jsonl") == before + row("second.jpg") + row("first.jpg"), "the next run adds it"


def test_a_row_edited_in_the_bucket_meanwhile_stays_and_both_are_joined(bucket: Bucket, machine: Machine) -> None:
    bucket.fs.pipe_file(f"{bucket.url}/labeled.jsonl", row("a.jpg", by="us") + row("b.jpg", by="us"))
    mirror = machine("here")
    with mirror:
        add(mirror, row("c.jpg"))
        edited = row("a.jpg", by="hand") + row("b.jpg", by="us")
        bucket.fs.pipe_file(f"{bucket.url}/labeled.jsonl", edited)
        with pytest.raises(ObjectChangedError):
            mirror.publish()
        assert bucket.lines("labeled.jsonl") == edited
    with (again := machine("here")):
        again.publish()
    assert bucket.lines("labeled.jsonl") == edited + row("c.jpg")


def test_failures_and_output_removed_from_the_bucket_are_not_overwritten(bucket: Bucket, machine: Machine) -> None:
    bucket.fs.pipe_file(f"{bucket.url}/labeled.jsonl", row("a.jpg"))
    mirror = machine("here")
    with mirror:
        add(mirror, row("b.jpg"))
        bucket.fs.rm_file(f"{bucket.url}/labeled.jsonl")
        with pytest.raises(ObjectChangedError):
            mirror.publish()
    assert not bucket.fs.exists(f"{bucket.url}/labeled.jsonl")


def test_a_part_is_named_by_its_images_and_the_next_plan_has_another(bucket: Bucket, machine: Machine) -> None:
    with (mirror := machine("here")):
        part = mirror.workspace.parts / "000001.jsonl"
        part.parent.mkdir(exist_ok=True)
        for line, paths in ((row("a.jpg"), ["a.jpg"]), (row("b.jpg"), ["b.jpg"])):
            part.write_bytes(line)
            mirror.keep(chunk(1, *paths))
        assert sorted(parts_of(bucket).values()) == [row("a.jpg"), row("b.jpg")]
        part.write_bytes(row("b.jpg") + row("c.jpg"))
        mirror.keep(chunk(1, "b.jpg"))
        assert sorted(parts_of(bucket).values()) == [row("a.jpg"), row("b.jpg") + row("c.jpg")]
        part.unlink()
    with (other := machine("there")):
        assert sorted(other.workspace.output.read_bytes().splitlines()) == [
            row(f"{name}.jpg").strip() for name in "abc"
        ]


def test_chunks_that_finish_at_the_same_time_are_all_saved(bucket: Bucket, machine: Machine) -> None:
    with (mirror := machine("here")), ThreadPoolExecutor(8) as threads:
        mirror.workspace.parts.mkdir(exist_ok=True)
        chunks = [chunk(number, f"{number}.jpg") for number in range(1, 17)]
        for each in chunks:
            (mirror.workspace.parts / f"{each.name}.jsonl").write_bytes(row(f"{each.number}.jpg"))
        for keeping in [threads.submit(mirror.keep, each) for each in chunks]:
            keeping.result()
        assert sorted(parts_of(bucket)) == sorted(f"{each.digest}-{mirror._token}.jsonl" for each in chunks)
        for each in chunks:
            (mirror.workspace.parts / f"{each.name}.jsonl").unlink()


def test_a_late_part_does_not_replace_a_longer_one(bucket: Bucket, machine: Machine, s3_server: str) -> None:
    with sleepy(s3_server) as way, ThreadPoolExecutor(1) as threads, (mirror := machine("here", way.url)):
        part = mirror.workspace.parts / "000001.jsonl"
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(row("a.jpg"))
        way.held = "/parts/"
        keeping = threads.submit(mirror.keep, chunk(1, "a.jpg", "b.jpg"))
        assert way.arrived.wait(30)
        longer = row("a.jpg") + row("b.jpg")
        name = f"{chunk(1, 'a.jpg', 'b.jpg').digest}-{mirror._token}.jsonl"
        bucket.fs.pipe_file(f"{bucket.url}/labeled.work/parts/{name}", longer)
        way.release.set()
        with pytest.raises(ObjectChangedError):
            keeping.result()
        part.unlink()
    assert parts_of(bucket) == {name: longer}


def test_two_stores_with_a_bucket_of_the_same_name_share_nothing(
    bucket: Bucket, machine: Machine, s3_server: str, tmp_path: Path
) -> None:
    bucket.fs.pipe_file(f"{bucket.url}/input.jsonl", row("a.jpg"))
    with sleepy(s3_server) as way:
        mirrors = [machine("here", endpoint) for endpoint in (s3_server, way.url, s3_server)]
        copies = []
        for endpoint in (s3_server, way.url):
            machine("here", endpoint)
            copies.append(local_copy(f"{bucket.url}/input.jsonl", tmp_path / "inputs", threading.Event()))
    assert mirrors[0].workspace == mirrors[2].workspace
    assert mirrors[0].workspace.output != mirrors[1].workspace.output
    assert copies[0] != copies[1]


def test_runs_on_one_machine_download_an_input_once(
    bucket: Bucket, machine: Machine, s3_server: str, tmp_path: Path
) -> None:
    content = b"".join(row(f"{number}.jpg") for number in range(100_000))
    bucket.fs.pipe_file(f"{bucket.url}/input.jsonl", content)
    machine("here", s3_server)

    def fetch(_: int) -> Path:
        return local_copy(f"{bucket.url}/input.jsonl", tmp_path / "inputs", threading.Event())

    with ThreadPoolExecutor(8) as threads:
        copies = set(threads.map(fetch, range(8)))
    assert len(copies) == 1
    assert copies.pop().read_bytes() == content


def test_a_large_file_is_uploaded_in_pieces_and_only_if_nothing_changed(bucket: Bucket, tmp_path: Path) -> None:
    path, file = f"{bucket.url}/large"[5:], tmp_path / "large"
    with file.open("wb") as large:
        large.truncate(70 * 1024 * 1024)
    version = upload(bucket.fs, file, path, None)
    assert version == version_there(bucket.fs, path)
    for stale in (None, '"0"'):
        with pytest.raises(ObjectChangedError):
            upload(bucket.fs, file, path, stale)
    upload(bucket.fs, file, path, version)
    assert bucket.fs.info(path)["size"] == 70 * 1024 * 1024
    uploads = bucket.fs.call_s3("list_multipart_uploads", Bucket=path.partition("/")[0])
    assert not uploads.get("Uploads"), "refused uploads leave nothing behind"


def test_without_conditional_writes_the_version_is_compared_first(tmp_path: Path) -> None:
    fs, file = fsspec.filesystem("memory"), tmp_path / "file"
    file.write_bytes(b"one")
    version = upload(fs, file, "/bucket/late", None)
    with pytest.raises(ObjectChangedError):
        upload(fs, file, "/bucket/late", None)
    upload(fs, file, "/bucket/late", version)
    fs.rm("/bucket", recursive=True)


async def test_a_run_cancelled_while_it_waits_for_a_lease_ends_at_once_without_it(
    bucket: Bucket, machine: Machine
) -> None:
    lease = f"{bucket.url}/labeled.work/lease"
    bucket.fs.pipe_file(lease, b'{"token": "another", "host": "there"}')
    machine("here")
    said: list[str] = []
    stopped = threading.Event()

    async def wait() -> None:
        async with in_thread(
            output_files(f"{bucket.url}/labeled.jsonl", "", said.append, stopped), give_up=stopped.set
        ):
            pass

    waiting = asyncio.create_task(wait())
    while not said:
        await asyncio.sleep(0.05)
    began = time.monotonic()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert time.monotonic() - began < 10
    assert [thread for thread in threading.enumerate() if thread.name == "lease"] == []
    assert json.loads(bucket.fs.cat_file(lease))["token"] == "another"  # noqa: S105
