"""`python -m flows.annotate` as a process: exit codes, messages, and nothing left behind."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stand_in.process import StandIn
from tests.conftest import ROOT, Job, lines_of

MakeJob = Callable[..., Job]


def refused(result: "subprocess.CompletedProcess[str]", job: Job) -> str:
    """The message of a command that was refused: one line, exit code 2, nothing written."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert sorted(path.name for path in job.folder.iterdir()) == ["images", "input.jsonl"]
    return result.stderr


@pytest.fixture
def job(make_job: MakeJob) -> Job:
    return make_job(3)


@pytest.mark.usefixtures("prefect_api")
class TestExitCodes:
    def test_0_when_every_image_is_answered(self, job: Job, stand_in: StandIn) -> None:
        result = job.run(stand_in.url)
        assert result.returncode == 0, result.stderr
        assert result.stderr.strip().splitlines()[-3:] == [
            "3 images: 3 answered, 0 failed",
            f"Answers:  {job.output}",
            f"Report:   {job.output.with_name('labeled.report.html')} (open it in a browser)",
        ]
        assert result.stderr.count("3 images: 3 answered") == 1
        assert len(lines_of(job.output)) == 3
        report = json.loads((job.folder / "labeled.report.json").read_text())
        assert report["images_per_second"] > 0, "even if it took less than one sample"

    def test_1_when_an_image_failed(self, job: Job, stand_in: StandIn) -> None:
        (job.images / job.names[0]).write_bytes(b"")
        result = job.run(stand_in.url)
        assert result.returncode == 1
        assert "2 answered, 1 failed (1 unreadable)" in result.stderr

    def test_1_when_a_chunk_failed(self, job: Job, stand_in: StandIn) -> None:
        stand_in.set_faults({"kind": "crash"})
        result = job.run(stand_in.url, "--server-wait-seconds", "0.5", "--chunk-retries", "0")
        assert result.returncode == 1
        assert "failed chunks: chunk 1 of 1" in result.stderr
        assert "Traceback" not in result.stderr

    def test_2_for_an_option_that_does_not_exist(self, job: Job) -> None:
        refused_by_parser = job.run("http://127.0.0.1:1", "--concurency", "3")
        assert refused_by_parser.returncode == 2
        assert "--concurency" in refused_by_parser.stderr

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--max-concurrency", "0"], "--max-concurrency '0': .*greater than or equal to 1"),
            (["--error-budget", "7"], "--error-budget '7': .*less than or equal to 1"),
            (["--api-base", "localhost:8000"], "error: --api-base: endpoint 'localhost:8000' must start with http"),
            (["--image-column", "image"], "has no column 'image'"),
            (["--image-root", "/nowhere"], "image root '/nowhere' is not a folder"),
            (["--input", "/nowhere.jsonl"], "input '/nowhere.jsonl' does not exist"),
            (["--output", "/proc/labeled.jsonl"], "cannot write beside output /proc/labeled.jsonl"),
            (["--output", "/usr"], "output '/usr' is a folder with other files, such as /usr/"),
            (["--server", "s.yaml"], "--server cannot be combined with --api-base"),
            (["--recipe", "/nowhere.yaml"], "recipe '/nowhere.yaml' cannot be read"),
            (["--recipe", "nobody-saved-it"], "recipe 'nobody-saved-it' is neither a file nor a saved"),
            (["--output", "/nowhere/labeled.jsonl"], "the folder of output '/nowhere/labeled.jsonl' does not exist"),
            (["--model-name", "qwen"], "does not serve 'qwen'; it serves 'stand-in-qwen2.5-vl'"),
        ],
    )
    def test_2_for_bad_usage(self, job: Job, stand_in: StandIn, options: list[str], complaint: str) -> None:
        started = time.monotonic()
        assert re.search(complaint, refused(job.run(stand_in.url, *options), job))
        assert time.monotonic() - started < 20

    def test_2_when_neither_the_models_name_nor_its_boxes_tell_its_family(self, job: Job) -> None:
        with StandIn.started("--model", "my-finetune") as server:
            server.set_faults({"kind": "text", "text": "I see.", "count": None, "proof": True})
            told = refused(job.run(server.url), job)
        assert re.search("'my-finetune', does not identify .*set the recipe's family .*qwen2.5-vl", told)

    def test_2_when_no_server_answers(self, job: Job, nobody: str) -> None:
        assert re.search(f"no vLLM server at {nobody}/v1 .*vllm serve MODEL --port", refused(job.run(nobody), job))

    def test_2_when_the_key_is_wrong(self, job: Job) -> None:
        with StandIn.started("--api-key", "right") as server:
            message = refused(job.run(server.url, VLLM_API_KEY="wrong"), job)
            assert "refused the API key: set VLLM_API_KEY" in message
            assert job.run(server.url, VLLM_API_KEY="right").returncode == 0

    def test_2_when_the_input_has_no_usable_row(self, job: Job, stand_in: StandIn) -> None:
        job.write_input([{"image_path": "", "caption": ""}])
        assert re.search("none of the first 1 rows .* has an image path", refused(job.run(stand_in.url), job))

    def test_2_when_the_output_is_the_input(self, job: Job, stand_in: StandIn) -> None:
        assert "input and output are both" in refused(job.run(stand_in.url, "--output", str(job.input)), job)

    def test_2_when_the_image_root_is_wrong_before_a_million_files_are_missing(
        self, make_job: MakeJob, stand_in: StandIn
    ) -> None:
        job = make_job(12)
        (job.folder / "elsewhere").mkdir()
        result = job.run(stand_in.url, "--image-root", str(job.folder / "elsewhere"))
        assert result.returncode == 2
        assert "none of 12 sampled images exists under" in result.stderr
        assert not job.work.exists()

    def test_a_recipe_is_loaded_by_the_name_of_its_block(self, job: Job, stand_in: StandIn) -> None:
        save = "from blocks import AnnotationRecipe; AnnotationRecipe(language='zh').save('mine', overwrite=True)"
        subprocess.run([sys.executable, "-c", save], cwd=ROOT, check=True)
        assert job.run(stand_in.url, "--recipe", "mine").returncode == 0
        assert "色" in lines_of(job.output)[0]["objects"][0]["name"]

    def test_2_when_another_run_writes_the_output(self, make_job: MakeJob) -> None:
        job = make_job(30)
        with StandIn.started("--prefill-seconds", "1") as slow:
            first = job.start(slow.url, "--max-concurrency", "4")
            while not any(job.work.glob("parts/*.jsonl")):
                time.sleep(0.1)
            second = job.run(slow.url)
            assert second.returncode == 2
            assert f"being written by another run (process {first.pid} on " in second.stderr
            assert "Traceback" not in second.stderr
            first.communicate()
            assert first.returncode == 0
        assert len(lines_of(job.output)) == 30

    def test_2_when_the_recipe_is_another(self, job: Job, stand_in: StandIn) -> None:
        assert job.run(stand_in.url).returncode == 0
        before = job.output.read_bytes()
        recipe = job.folder / "recipe.yaml"
        recipe.write_text("temperature: 0.5\n")
        result = job.run(stand_in.url, "--recipe", str(recipe))
        assert result.returncode == 2
        assert "temperature: 0.0 → 0.5" in result.stderr
        assert job.output.read_bytes() == before

    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
    def test_130_when_it_is_interrupted_and_the_next_run_goes_on(self, make_job: MakeJob, stop: signal.Signals) -> None:
        job = make_job(30)
        with StandIn.started("--prefill-seconds", "0.3") as slow:
            process = job.start(slow.url, "--max-concurrency", "4", "--chunk-size", "10")
            while len(slow.asked()) < 12:
                time.sleep(0.05)
            process.send_signal(stop)
            _, err = process.communicate(timeout=30)
            assert process.returncode == 130, err
            assert "run the same command again to resume" in err
            assert re.search(r"\d+ answers so far are saved in .*labeled.work/parts", err)
            assert "Crash" not in err
            assert "Traceback" not in err
            assert job.run(slow.url, "--chunk-size", "10").returncode == 0
            assert sum(slow.asked().values()) <= 30 + 4
        assert [row["image_path"] for row in lines_of(job.output)] == job.names

    def test_130_when_it_is_ended_at_full_speed(self, make_job: MakeJob) -> None:
        job = make_job(6000, distinct=20)
        with StandIn.started("--canned") as fast:
            for number in range(3):
                process = job.start(fast.url, "--max-concurrency", "64")
                answered = sum(fast.asked().values())
                while sum(fast.asked().values()) < answered + 100:
                    time.sleep(0.05)
                process.terminate()
                _, err = process.communicate(timeout=20)
                assert process.returncode == 130, f"time {number}: {err}"
                assert "Traceback" not in err
                assert "Exception" not in err


def test_2_when_prefect_api_url_does_not_answer(job: Job, stand_in: StandIn, nobody: str) -> None:
    message = refused(job.run(stand_in.url, PREFECT_API_URL=f"{nobody}/api"), job)
    assert "no Prefect server at PREFECT_API_URL" in message


def test_without_a_prefect_server_the_run_is_quiet_and_recorded(job: Job, stand_in: StandIn, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-m", "flows.annotate", *job.arguments(stand_in.url, "--chunk-size", "1")]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "Prefect UI during this run: http://127.0.0.1:" in result.stderr
    database = sqlite3.connect(tmp_path / "home" / "prefect.db")
    states = dict(database.execute("select name, state_name from task_run"))
    database.close()
    assert states == dict.fromkeys(
        ["plan", "prove", "chunk 1 of 3", "chunk 2 of 3", "chunk 3 of 3", "merge", "report"], "Completed"
    )
    leftovers = subprocess.run(["pgrep", "-f", str(tmp_path / "home")], capture_output=True, text=True, check=False)
    assert leftovers.stdout == ""


def test_a_killed_run_leaves_no_prefect_server_behind(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(30)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path / "home")
    with StandIn.started("--prefill-seconds", "5") as slow:
        command = [sys.executable, "-m", "flows.annotate", *job.arguments(slow.url)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        while not slow.asked():
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.kill()
        process.wait()
        deadline = time.monotonic() + 15
        while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.alone
def test_130_soon_when_it_is_interrupted_while_its_prefect_server_starts(
    job: Job, stand_in: StandIn, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-m", "flows.annotate", *job.arguments(stand_in.url)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)
    while not (tmp_path / "home").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--output", "~nobody-at-all/labeled.jsonl", "the home folder of"),
        ("--input", "~nobody-at-all/input.jsonl", "the home folder of"),
        ("--image-root", b"\xc4\xe3", "is not UTF-8"),
        ("--output", b"/tmp/\xc4\xe3.jsonl", "is not UTF-8"),
    ],
)
def test_2_for_a_path_that_cannot_be_one(
    job: Job, stand_in: StandIn, option: str, value: str | bytes, complaint: str
) -> None:
    arguments = job.arguments(stand_in.url)
    arguments[arguments.index(option) + 1] = os.fsdecode(value)
    process = job.start_with(arguments)
    out, err = process.communicate(timeout=60)
    message = refused(subprocess.CompletedProcess(process.args, process.returncode, out, err), job)
    assert complaint in message


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("name", ["recipe.json", "format"])
def test_2_for_a_folder_where_a_file_should_be(job: Job, stand_in: StandIn, name: str) -> None:
    job.output.write_text('{"image_path": "old.jpg"}\n')
    (job.work / name).mkdir(parents=True)
    result = job.run(stand_in.url)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert f"{job.work / name}: Is a directory" in result.stderr


@pytest.mark.usefixtures("prefect_api")
def test_the_log_as_json_is_json_line_by_line_with_prefect_too(make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(3)
    (job.images / job.names[0]).write_bytes(b"")
    result = job.run(stand_in.url, "--log-json")
    assert result.returncode == 1, result.stderr
    records = [json.loads(line) for line in result.stderr.splitlines()]
    messages = [record["message"] for record in records]
    assert "3 images: 2 answered, 1 failed (1 unreadable)" in messages
    assert f"Failures: {job.failures}" in messages


@pytest.mark.parametrize("module", ["annotate", "merge_shards", "reparse"])
@pytest.mark.parametrize("after", [0.15, 0.6, 1.2])
def test_ctrl_c_at_the_start_of_a_command_prints_no_traceback(module: str, after: float, tmp_path: Path) -> None:
    arguments = ["--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "b.txt"), "--image-root", "x"]
    command = [sys.executable, "-m", f"flows.{module}", *arguments[: 4 if module == "reparse" else 6]]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # Until the command's own first function runs, the interpreter itself reports Ctrl-C.
    assert "Traceback" not in err or "runpy" in err, err
    assert ", in start" not in err, err
