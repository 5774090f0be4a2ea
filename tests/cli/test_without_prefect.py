"""The same engine without Prefect, for Slurm arrays and home folders on NFS."""

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from stand_in.process import StandIn
from tests.cli.conftest import Done
from tests.conftest import ROOT, Job, lines_of

Command = Callable[..., Done]
MakeJob = Callable[..., Job]
PROGRAM = "from vllm_annotate.cli.start import start; start()"


def test_it_writes_what_the_flow_writes_and_never_imports_prefect(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(5)
    program = "import sys; from vllm_annotate.cli.main import main; code = main(sys.argv[1:]); "
    program += "print('prefect' in sys.modules); sys.exit(code)"
    arguments = ["annotate", *job.arguments(stand_in.url), "--without-prefect"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert [row["image_path"] for row in lines_of(job.output)] == job.names
    assert {path.name for path in job.folder.iterdir()} == {
        "images", "input.jsonl", "labeled.jsonl", "labeled.report.json", "labeled.report.html", "labeled.work",
    }  # fmt: skip


def test_the_log_as_json_is_json_line_by_line(command: Command, make_job: MakeJob, stand_in: StandIn) -> None:
    done = command("annotate", *make_job(3).arguments(stand_in.url), "--without-prefect", "--log-json")
    assert done.code == 0
    records = [json.loads(line) for line in done.err.splitlines()]
    assert all(record.keys() == {"time", "level", "message"} for record in records)
    assert "3 images: 3 answered, 0 failed" in [record["message"] for record in records]


def test_a_refusal_is_printed_once(command: Command, make_job: MakeJob, nobody: str) -> None:
    done = command("annotate", *make_job(3).arguments(nobody), "--without-prefect")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert f"no vLLM server at {nobody}/v1" in done.err


@pytest.mark.parametrize("option", ["--input", "--image-root", "--output", "--job", "--recipe"])
def test_links_that_lead_to_each_other_are_refused(
    command: Command, make_job: MakeJob, stand_in: StandIn, option: str
) -> None:
    job = make_job(1)
    loop = job.folder / "loop.jsonl"
    loop.symlink_to("other.jsonl")
    loop.with_name("other.jsonl").symlink_to("loop.jsonl")
    done = command("annotate", *job.arguments(stand_in.url), option, loop, "--without-prefect")
    assert done.code == 2
    assert "Traceback" not in done.err
    message = done.err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert str(loop) in message


def test_an_empty_image_root_is_named_and_no_other_file_is_blamed(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(1)
    (job.images / job.names[0]).unlink()
    done = command("annotate", *job.arguments(stand_in.url), "--without-prefect")
    assert done.code == 2
    remedy = "check whether it is mounted, and run again; all answers are saved"
    assert f"error: image root {job.images} is empty: {remedy}\n" in done.err


def test_a_corrupt_input_is_named_and_no_file_that_does_not_exist(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(1)
    rows = "".join(json.dumps({"image_path": "0000.jpg", "n": n, "caption": ""}) + "\n" for n in range(20_000))
    job.input.write_bytes(gzip.compress(rows.encode())[:-2000])
    done = command("annotate", *job.arguments(stand_in.url), "--without-prefect")
    assert done.code == 2
    assert f"error: {job.input} is truncated or corrupt (unexpected end of file): restore it\n" in done.err


def test_captions_that_are_not_utf_8_are_warned_of(command: Command, make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(3)
    rows = [row | {"caption": "两只猫"} for row in job.rows()]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for encoding, warned in (("gb18030", True), ("utf-8", False)):
        job.input.write_bytes(text.encode(encoding))
        done = command("annotate", *job.arguments(stand_in.url), "--without-prefect")
        assert done.code == 0, done.err
        assert ("3 of the first 1000 lines" in done.err) is warned, done.err
        assert ("iconv -f GB18030" in done.err) is warned


def test_a_machine_that_allows_no_more_threads_is_named(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(1)
    program = f"import threading; threading.stack_size(1 << 46); {PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program, "annotate", *job.arguments(stand_in.url), "--without-prefect"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: this machine allows no more memory or threads: raise the limits")


def test_a_saved_block_needs_prefect(command: Command, make_job: MakeJob, stand_in: StandIn) -> None:
    done = command("annotate", *make_job(1).arguments(stand_in.url), "--recipe", "mine", "--without-prefect")
    assert done.code == 2
    assert "--recipe 'mine' is not a file, and saved blocks need Prefect" in done.err


def test_a_chunk_that_lost_its_server_is_retried(command: Command, make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(4)
    stand_in.set_faults({"kind": "crash"})
    patience = ("--server-wait-seconds", "0.5", "--chunk-retries", "0")
    done = command("annotate", *job.arguments(stand_in.url, *patience), "--without-prefect")
    assert done.code == 1
    assert "failed chunks: chunk 1 of 1" in done.err
    assert all(row["failure"]["kind"] == "server" for row in lines_of(job.failures))


def test_the_output_grows_while_a_run_works_and_no_byte_of_it_changes(make_job: MakeJob) -> None:
    job = make_job(40, distinct=5)
    job.output.write_text(json.dumps({"image_path": job.names[7], "own": 1.50}) + "\n")
    before, sizes = job.output.read_bytes(), set[int]()
    inode = job.output.stat().st_ino
    with StandIn.started("--canned", "--prefill-seconds", "0.1") as server:
        run = job.start(server.url, "--without-prefect", "--chunk-size", "5", "--max-concurrency", "4")
        while run.poll() is None:
            content = job.output.read_bytes()
            assert content.startswith(before)
            before, sizes = content, sizes | {len(content)}
            time.sleep(0.01)
        _, said = run.communicate()
    assert run.returncode == 0, said
    assert len(sizes) >= 4, "chunk by chunk"
    assert job.output.stat().st_ino == inode
    others = [name for name in job.names if name != job.names[7]]
    assert [row["image_path"] for row in lines_of(job.output)] == [job.names[7], *others]
    assert not job.failures.exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_stops_and_resumes_as_the_flow_does(make_job: MakeJob, stop: signal.Signals) -> None:
    job = make_job(30)
    with StandIn.started("--prefill-seconds", "0.3") as slow:
        arguments = ["annotate", *job.arguments(slow.url, "--max-concurrency", "4"), "--without-prefect"]
        command = [sys.executable, "-c", PROGRAM, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)
        while len(slow.asked()) < 12:
            time.sleep(0.05)
        process.send_signal(stop)
        _, err = process.communicate(timeout=30)
        assert process.returncode == (-9 if stop == signal.SIGKILL else 130), err
        assert "Traceback" not in err
        if stop != signal.SIGKILL:
            assert re.search(r"\d+ answers so far are saved in .*parts.*; run the same command again to resume", err)
        assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0
        assert sum(slow.asked().values()) <= 30 + 4
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


def test_an_early_interruption_names_no_missing_folder(make_job: MakeJob) -> None:
    job = make_job(3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        arguments = ["annotate", *job.arguments(f"http://127.0.0.1:{silent.getsockname()[1]}"), "--without-prefect"]
        command = [sys.executable, "-c", PROGRAM, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)
        silent.accept()[0].close()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.strip() == "interrupted: nothing was written; run the same command again to resume"
    assert not job.work.exists()


def test_a_limit_a_larger_one_and_a_sample_annotate_each_image_once(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(8)
    arguments = ["annotate", *job.arguments(stand_in.url), "--without-prefect"]
    first = command(*arguments, "--limit", "2")
    assert first.code == 0
    assert "2 images: 2 answered, 0 failed, 6 not selected" in first.err
    again = command(*arguments, "--limit", "2")
    assert "2 images: 0 answered, 2 already answered, 0 failed, 6 not selected" in again.err
    assert [row["image_path"] for row in lines_of(job.output)] == job.names[:2]
    assert command(*arguments, "--limit", "5").code == 0
    assert [row["image_path"] for row in lines_of(job.output)] == job.names[:5]
    assert command(*arguments, "--limit", "2").code == 0
    report = json.loads((job.folder / "labeled.report.json").read_text())
    assert report["output"]["images"] == 5, "also those that this run did not select"
    assert command(*arguments, "--sample", "8").code == 0
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--limit", "2", "--sample", "2"], "--sample '2': cannot be combined with limit"),
        (["--sample", "2", "--shard", "1/2"], "--sample '2': selects from the whole input: leave shard empty"),
        (["--limit", "-1"], "--limit '-1': Input should be greater than or equal to 0"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(
    command: Command, make_job: MakeJob, stand_in: StandIn, options: list[str], why: str
) -> None:
    done = command("annotate", *make_job(3).arguments(stand_in.url), "--without-prefect", *options)
    assert done.code == 2
    assert why in done.err


def test_a_dry_run_says_what_is_open_without_a_server_and_writes_nothing(
    command: Command, make_job: MakeJob, stand_in: StandIn, nobody: str
) -> None:
    job = make_job(8)
    dry = ["annotate", *job.arguments(nobody), "--dry-run"]
    before = set(job.folder.iterdir())
    assert command(*dry).out == "8 of 8 images are open; nothing was sent or written\n"
    assert set(job.folder.iterdir()) == before
    assert command("annotate", *job.arguments(stand_in.url), "--without-prefect", "--limit", "3").code == 0
    assert command(*dry).out == "5 of 8 images are open; nothing was sent or written\n"
    selected = command(*dry, "--limit", "4").out
    assert selected == "1 of 4 images are open (4 of 8 are selected); nothing was sent or written\n"
    (job.folder / "labeled.work" / "parts" / "000001.jsonl").write_text(json.dumps({"image_path": job.names[7]}) + "\n")
    assert command(*dry).out == "4 of 8 images are open; nothing was sent or written\n"
