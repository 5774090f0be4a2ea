"""Input, images and output in an object store: any machine can resume, and losing one loses nothing."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from flows.export_report import export_report
from flows.retry import retry_failures
from stand_in.process import StandIn
from tests.conftest import ROOT, Job
from tests.support.s3 import Bucket
from vllm_annotate.errors import ImageFailure, MachineFault, UsageError
from vllm_annotate.images.files import read_image
from vllm_annotate.storage.image_roots import RemoteFolder

MakeJob = Callable[[int], Job]

pytestmark = [pytest.mark.deployed, pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(400)]


def ended(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def paths(lines: bytes) -> list[str]:
    return [json.loads(line)["image_path"] for line in lines.splitlines()]


def test_a_run_in_a_bucket_gives_the_same_output_as_in_folders(
    make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn
) -> None:
    job = make_remote_job(12)
    job.write_input([*job.rows(), {"image_path": "gone.jpg", "caption": "x"}, {"image_path": "../input.jsonl"}])
    bucket.put(job)
    local = job.run(stand_in.url)
    stand_in.forget()
    remote = job.run_with(bucket.arguments(stand_in.url, "--chunk-size", "5"))
    assert remote.returncode == local.returncode == 1, remote.stderr
    assert bucket.lines("out/labeled.jsonl") == job.output.read_bytes()
    kinds = [json.loads(line)["failure"]["kind"] for line in bucket.lines("out/labeled.failures.jsonl").splitlines()]
    assert kinds == ["missing", "outside_root"]
    report = json.loads(bucket.lines("out/labeled.report.json"))
    assert report["images"]["answered"] == 12
    assert bucket.lines("out/labeled.report.html").startswith(b"<!doctype html>")
    left = bucket.fs.find(f"{bucket.url}/out/labeled.work")
    assert [name for name in left if "/parts/" in name or name.endswith("/lease")] == []
    stand_in.forget()
    bucket.fs.rm_file(f"{bucket.url}/out/labeled.failures.jsonl")
    lines = bucket.lines("out/labeled.jsonl").splitlines(keepends=True)
    bucket.fs.pipe_file(f"{bucket.url}/out/labeled.jsonl", b"".join([*lines[:3], *lines[4:]]))
    again = job.run_with(bucket.arguments(stand_in.url))
    assert list(stand_in.asked()) == ["caption of 0003.jpg"], again.stderr + "what was edited there is seen here"
    assert paths(bucket.lines("out/labeled.jsonl")) == [*job.names[:3], *job.names[4:], "0003.jpg"]


@pytest.mark.long  # a lease lasts a minute
def test_after_a_kill_a_run_on_this_or_another_machine_resumes(
    make_remote_job: MakeJob, bucket: Bucket, tmp_path: Path
) -> None:
    with StandIn.started("--canned", "--prefill-seconds", "0.2") as server:
        job = make_remote_job(60)
        arguments = bucket.arguments(server.url, "--chunk-size", "10", "--max-concurrency", "4")
        for kill_at in (12, 34):
            process = job.start_with(arguments)
            while len(server.asked()) < kill_at:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        asked = sum(server.asked().values())
        assert asked <= 34 + 4 + 4, "the same machine re-sends only what was in flight, and at once"
        kept = bucket.fs.find(f"{bucket.url}/out/labeled.work/parts")
        assert len(kept) >= 2, "finished chunks are in the bucket"
        answers = sum(bucket.fs.cat_file(name).count(b"\n") for name in kept)  # a stopped chunk has fewer than ten
        server.forget()
        done = job.run_with(arguments, XDG_STATE_HOME=str(tmp_path / "another machine"))
        assert done.returncode == 0, done.stderr
        assert "waiting 60 s to see if it is still running" in done.stderr
        assert sum(server.asked().values()) <= 60 - answers, "answers in the bucket are not requested again"
        assert sorted(paths(bucket.lines("out/labeled.jsonl"))) == job.names
        server.forget()
        back = job.run_with(arguments)
        assert back.returncode == 0, back.stderr
        assert server.asked() == {}
    assert sorted(paths(bucket.lines("out/labeled.jsonl"))) == job.names, "0 lost, 0 twice"


@pytest.mark.long
def test_two_machines_never_write_one_output(make_remote_job: MakeJob, bucket: Bucket, tmp_path: Path) -> None:
    with StandIn.started("--canned", "--prefill-seconds", "2.5") as server:
        job = make_remote_job(100)  # two minutes
        first = job.start_with(bucket.arguments(server.url, "--max-concurrency", "2"))
        while not server.asked():
            time.sleep(0.05)
        other = bucket.arguments(server.url)
        here = job.run_with(other)
        assert (here.returncode, "another run on this machine" in here.stderr) == (2, True)
        there = job.run_with(other, XDG_STATE_HOME=str(tmp_path / "another machine"))
        assert there.returncode == 2
        assert "labeled.jsonl is being written by another run" in there.stderr
        first.send_signal(signal.SIGTERM)
        stopped = ended(first)
        assert stopped.returncode == 130
        assert "saved beside s3://" in stopped.stderr
        parts = bucket.fs.find(f"{bucket.url}/out/labeled.work/parts")
        assert len(parts) == 1, "a stopped run uploads its answers and releases the lease"
        assert not bucket.fs.exists(f"{bucket.url}/out/labeled.work/lease")


def test_a_run_that_lost_its_lease_sends_no_more(make_remote_job: MakeJob, bucket: Bucket) -> None:
    with StandIn.started("--canned", "--prefill-seconds", "0.2") as server:
        job = make_remote_job(120)
        run = job.start_with(bucket.arguments(server.url, "--chunk-size", "10", "--max-concurrency", "2"))
        while len(server.asked()) < 12:
            time.sleep(0.05)
        bucket.fs.pipe_file(f"{bucket.url}/out/labeled.work/lease", b'{"token": "another"}')
        taken = len(server.asked())
        ended_run = ended(run)
        assert ended_run.returncode == 2, ended_run.stderr
        assert "another run took over" in ended_run.stderr
        assert "Traceback" not in ended_run.stderr
        assert len(server.asked()) <= taken + 2 * 10 + 2, "noticed at the end of a chunk"


def test_shards_on_two_machines_are_merged_in_the_bucket(
    make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn, tmp_path: Path
) -> None:
    job = make_remote_job(20)
    assert job.run(stand_in.url).returncode == 0
    for number in (1, 2):
        ran = job.run_with(
            bucket.arguments(stand_in.url, "--shard", f"{number}/2"), XDG_STATE_HOME=str(tmp_path / f"machine {number}")
        )
        assert ran.returncode == 0
    command = [sys.executable, "-m", "flows.merge_shards", *bucket.arguments("")[:6]]
    merged = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert merged.returncode == 0, merged.stderr
    assert bucket.lines("out/labeled.jsonl") == job.output.read_bytes()
    left = bucket.fs.find(f"{bucket.url}/out/labeled.shards")
    assert [name for name in left if name.endswith(".jsonl")] == [], "files of merged shards are removed"


async def test_failures_are_retried_and_the_report_is_rebuilt_by_url(
    make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn
) -> None:
    job = make_remote_job(5)
    bucket.fs.rm_file(f"{bucket.url}/images/0002.jpg")
    assert job.run_with(bucket.arguments(stand_in.url)).returncode == 1
    bucket.fs.put_file(str(job.images / "0002.jpg"), f"{bucket.url}/images/0002.jpg")
    files: dict[str, Any] = {"output": f"{bucket.url}/out/labeled.jsonl", "image_root": f"{bucket.url}/images"}
    from blocks import VLLMServer

    server = VLLMServer(endpoints=[f"{stand_in.url}/v1"])
    state = await retry_failures(**files, server=server, kinds=["missing"], return_state=True)
    assert "1 answered" in (state.message or ""), state.message
    assert sorted(paths(bucket.lines("out/labeled.jsonl"))) == job.names
    assert bucket.lines("out/labeled.failures.jsonl") == b""
    bucket.fs.rm_file(f"{bucket.url}/out/labeled.report.html")
    state = await export_report(**files, return_state=True)
    assert state.message == f"wrote {bucket.url}/out/labeled.report.html"
    assert b"0002.jpg" in bucket.lines("out/labeled.report.html")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "check the credentials and the endpoint"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "cannot be reached"),
    ],
)
def test_an_unreachable_store_is_refused_with_a_remedy(
    make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn, changed: dict[str, str], complaint: str
) -> None:
    job = make_remote_job(1)
    refused = job.run_with(bucket.arguments(stand_in.url), **changed)
    assert refused.returncode == 2, refused.stderr
    assert complaint in refused.stderr


def test_missing_objects_are_named(make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn) -> None:
    job = make_remote_job(1)
    given = bucket.arguments(stand_in.url)
    for number, wrong, complaint in (
        (1, f"{bucket.url}/nothing.jsonl", "nothing.jsonl' does not exist"),
        (1, "s3://no-such-bucket/input.jsonl", "does not exist"),
        (5, "s3://no-such-bucket/labeled.jsonl", "s3://no-such-bucket/labeled.jsonl cannot be reached"),
        (5, f"{bucket.url}/labeled.parquet", "must end in .jsonl"),
        (5, "gs://bucket/labeled.jsonl", "needs a driver"),
        (5, "nonsense://bucket/labeled.jsonl", "is not a URL that fsspec supports"),
    ):
        refused = job.run_with([*given[:number], wrong, *given[number + 1 :]])
        assert refused.returncode == 2, refused.stderr
        assert complaint in refused.stderr, refused.stderr


@pytest.mark.parametrize("left", ["labeled.jsonl", "labeled.work/mirror/unpublished.jsonl"])
def test_answers_merged_locally_but_not_published_survive_an_edit_in_the_bucket(
    make_remote_job: MakeJob, bucket: Bucket, stand_in: StandIn, left: str
) -> None:
    job = make_remote_job(6)
    assert job.run_with(bucket.arguments(stand_in.url)).returncode == 0
    local = next((Path(os.environ["XDG_STATE_HOME"]) / "vllm-annotate" / "mirrors").glob("*/labeled.jsonl"))
    local = local.parent / left  # the second: a run was killed while it downloaded the edited output
    lines = bucket.lines("out/labeled.jsonl").splitlines(keepends=True)
    # As if the last run had published only four rows, of which one was edited then.
    local.write_bytes(b"".join(lines))
    bucket.fs.pipe_file(f"{bucket.url}/out/labeled.jsonl", b"".join(lines[:4]).replace(b"0001.jpg", b"0001.JPG"))
    stand_in.forget()
    assert job.run_with(bucket.arguments(stand_in.url)).returncode == 0
    kept = paths(bucket.lines("out/labeled.jsonl"))
    assert kept[:4] == ["0000.jpg", "0001.JPG", "0002.jpg", "0003.jpg"]
    assert set(job.names) <= set(kept)
    assert len(kept) == len(set(kept))
    assert stand_in.asked() == {}, "local answers are not requested again"


def test_local_answers_of_another_recipe_are_not_mixed_in(
    make_remote_job: MakeJob, bucket: Bucket, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("temperature: 0.5\n")
    with StandIn.started("--canned", "--prefill-seconds", "0.3") as server:
        job = make_remote_job(30)
        first = job.start_with(bucket.arguments(server.url, "--max-concurrency", "2"))
        while len(server.asked()) < 6:
            time.sleep(0.05)
        first.kill()
        first.communicate()
        bucket.fs.rm_file(f"{bucket.url}/out/labeled.work/lease")  # or wait a minute
        other = bucket.arguments(server.url, "--recipe", str(recipe))
        assert job.run_with(other, XDG_STATE_HOME=str(tmp_path / "another machine")).returncode == 0
        refused = job.run_with(other)
        assert refused.returncode == 2, refused.stderr
        assert "has unpublished answers of another recipe than" in refused.stderr
        assert not bucket.fs.exists(f"{bucket.url}/out/labeled.work/lease"), "other runs need not wait for it"
    assert len(paths(bucket.lines("out/labeled.jsonl"))) == 30


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc/passwd", "outside_root"), ("../x.jpg", "outside_root"), ("a/../../x.jpg", "outside_root"),
        ("", "outside_root"), (".", "outside_root"), ("s3://other/x.jpg", "missing"), ("%2e%2e/x.jpg", "missing"),
        ("*.jpg", "missing"), ("\ud800.jpg", "missing"), ("x" * 2000, "missing"), ("empty.jpg", "unreadable"),
    ],
)  # fmt: skip
def test_a_bad_image_in_a_bucket_costs_only_that_image(bucket: Bucket, path: str, kind: str) -> None:
    bucket.fs.pipe_file(f"{bucket.url}/images/empty.jpg", b"")
    bucket.fs.pipe_file(f"{bucket.url}/x.jpg", b"outside")
    with pytest.raises(ImageFailure) as failure:
        read_image(RemoteFolder(f"{bucket.url}/images"), path)
    assert failure.value.kind == kind


def test_a_fault_of_the_store_is_not_an_images_fault(bucket: Bucket) -> None:
    with pytest.raises(MachineFault, match="image root s3://no-such-bucket-at-all/images is empty: check the URL"):
        read_image(RemoteFolder("s3://no-such-bucket-at-all/images"), "x.jpg")
    with pytest.raises(UsageError, match="has no bucket"):
        RemoteFolder("s3://")
    for status, code in ((400, "AuthorizationHeaderMalformed"), (403, "ExpiredToken"), (403, "SignatureDoesNotMatch")):
        with fake_s3(status, code) as url:
            os.environ["AWS_ENDPOINT_URL"] = url
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            root = RemoteFolder(f"{bucket.url}/images")
            with pytest.raises(MachineFault, match=rf"image root {root} .*({code}|Bad Request).*: check the "):
                read_image(root, "x.jpg")


@contextmanager
def fake_s3(status: int, code: str) -> Iterator[str]:
    """A store that refuses every request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        do_HEAD = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_machines_with_one_home_have_a_token_each_and_one_of_them_that_of_before(tmp_path: Path) -> None:
    program = "from vllm_annotate.results.mirror import Mirror; print(Mirror('memory://bucket/labeled.jsonl')._token)"
    as_other = ["unshare", "--user", "--map-root-user", "--uts", "sh", "-c", 'hostname other && exec "$@"', "sh"]
    if subprocess.run([*as_other, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test have another host name")

    def token(*prefix: str) -> str:
        command = [*prefix, sys.executable, "-c", program]
        environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=True)
        return done.stdout.strip()

    first = token()
    (of_machine,) = tmp_path.rglob("token-*")
    of_machine.rename(of_machine.with_name("token"))  # as an earlier version wrote it
    assert token() == first
    other = token(*as_other)
    assert other != first
    assert (token(), token(*as_other)) == (first, other)
