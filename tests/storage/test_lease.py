"""Leases on outputs in an object store."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.s3 import Bucket
from vllm_annotate.errors import UsageError
from vllm_annotate.storage.lease import RENEW_SECONDS, Lease

pytestmark = pytest.mark.deployed


def lease(bucket: Bucket, token: str, said: list[str] | None = None) -> Lease:
    say = (said if said is not None else []).append
    return Lease(bucket.fs, f"{bucket.url}/lease".removeprefix("s3://"), f"{bucket.url}/labeled.jsonl", token, say)


def test_releasing_a_lease_lets_a_waiting_run_acquire_it(bucket: Bucket) -> None:
    said: list[str] = []
    first, second = lease(bucket, "one"), lease(bucket, "two", said)
    first.take()
    waiting = threading.Thread(target=second.take)
    waiting.start()
    while not said:
        assert waiting.is_alive()
        time.sleep(0.02)
    assert "to see if it is still running" in said[0]
    first.release()
    waiting.join(20)
    with pytest.raises(UsageError, match=r"is being written by another run \(.* since .*\): wait for it, stop it"):
        lease(bucket, "three").take()
    second.check()
    second.release()
    assert not bucket.fs.exists(f"{bucket.url}/lease")


def test_the_same_folder_takes_over_at_once_because_its_lock_proves_that_the_holder_is_gone(bucket: Bucket) -> None:
    lease(bucket, "one").take()  # and never released
    said: list[str] = []
    again = lease(bucket, "one", said)
    began = time.monotonic()
    again.take()
    assert time.monotonic() - began < 5
    assert said == []
    again.release()


def test_a_run_that_lost_its_lease_writes_no_more(bucket: Bucket) -> None:
    held = lease(bucket, "one")
    held.take()
    bucket.fs.pipe_file(f"{bucket.url}/lease", b'{"token": "another"}')
    deadline = time.monotonic() + RENEW_SECONDS + 10
    while held.held:  # it renews itself
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(UsageError, match="another run took over"):
        held.check()
    held.release()
    assert bucket.fs.cat_file(f"{bucket.url}/lease") == b'{"token": "another"}', "it no longer owns the lease"


def test_a_lease_works_without_conditional_writes() -> None:
    fs = fsspec.filesystem("memory")
    held = Lease(fs, "/bucket/lease", "memory://bucket/labeled.jsonl", "one", lambda _: None)
    held.take()
    held.check()
    held.release()
    assert not fs.exists("/bucket/lease")


def test_releasing_a_lease_that_was_never_held_changes_nothing(bucket: Bucket) -> None:
    first, second = lease(bucket, "one"), lease(bucket, "two")
    first.take()
    second.release()
    first.check()
    assert bucket.fs.exists(f"{bucket.url}/lease")
    bucket.fs.pipe_file(f"{bucket.url}/lease", b'{"token": "another"}')
    with pytest.raises(UsageError, match="another run took over"):
        first.check()
    first.release()


@pytest.mark.parametrize(
    "written",
    [
        b'{"token": "other", "since": Infinity, "beat": NaN}', b'{"since": 1e999, "host": {}}', b"null", b"", b"\xff",
        b'{"since": -9e99, "host": "\\u001b[31m' + b"x" * 10_000 + b'"}', b"[" * 100_000,
    ],
    ids=range(7),
)  # fmt: skip
def test_whatever_a_lease_says_its_holder_is_waited_for_and_named_on_one_line(written: bytes) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/lease", written)
    said: list[str] = []
    stopped = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        stopped.set()

    with pytest.raises(UsageError, match="stopped while waiting"):
        Lease(fs, "/bucket/lease", "memory://bucket/labeled.jsonl", "one", say, stopped).take()
    assert len(said[0]) < 600
    assert said[0].isprintable()
    fs.rm_file("/bucket/lease")


def test_a_lease_says_when_it_was_taken_with_the_offset_from_utc() -> None:
    fs = fsspec.filesystem("memory")
    held = Lease(fs, "/bucket/lease", "memory://bucket/labeled.jsonl", "one", lambda _: None)
    held.take()
    since = datetime.fromisoformat(json.loads(fs.cat_file("/bucket/lease"))["since"])
    held.release()
    assert abs(datetime.now(UTC) - since) < timedelta(minutes=5)


class SizesAlone(MemoryFileSystem):  # type: ignore[misc]
    """A store that says of an object only its size, and whose looks can fail."""

    protocol = "sizes"
    failing = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._fail()
        return {"name": path, "size": super().info(path, **options)["size"], "type": "file"}

    def cat_file(self, path: str, **options: Any) -> Any:
        self._fail()
        return super().cat_file(path, **options)

    def _fail(self) -> None:
        if self.failing:
            self.failing -= 1
            raise TimeoutError("no answer")


def test_a_lease_that_is_renewed_is_refused_to_others_even_if_the_store_tells_only_sizes() -> None:
    fs = SizesAlone()
    held = Lease(fs, "/sizes/lease", "sizes://lease", "one", lambda _: None)
    held.take()
    other = Lease(fs, "/sizes/lease", "sizes://lease", "two", lambda _: renewal.start())
    renewal = threading.Timer(0.1, held.check)
    with pytest.raises(UsageError, match="is being written by another run"):
        other.take()
    held.release()


def test_a_look_that_fails_after_a_renewal_does_not_lose_the_lease() -> None:
    fs = SizesAlone()
    held = Lease(fs, "/sizes/blip", "sizes://blip", "one", lambda _: None)
    held.take()

    def write(path: str, value: bytes, **options: Any) -> None:
        MemoryFileSystem.pipe_file(fs, path, value, **options)
        fs.failing = 1

    fs.pipe_file = write
    with pytest.raises(OSError, match="no answer"):
        held.check()
    del fs.pipe_file
    held.check()
    assert held.held
    fs.pipe_file("/sizes/blip", b'{"token": "two"}')
    with pytest.raises(UsageError, match="another run took over"):
        held.check()
