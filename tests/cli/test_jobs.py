"""Job files and remembered jobs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stand_in.process import StandIn
from tests.cli.conftest import Done
from tests.conftest import Job, lines_of

Command = Callable[..., Done]
MakeJob = Callable[..., Job]


def test_config_writes_a_job_file_that_options_override(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    written = command("config", "--job", file, "--input", "i.jsonl", "--chunk-size", "50", "--api-base", "http://a/v1")
    assert written.code == 0, written.err
    assert yaml.safe_load(file.read_text()) == {
        "input": "i.jsonl", "chunk_size": 50, "server": {"endpoints": ["http://a/v1"]},
    } == yaml.safe_load(written.out)  # fmt: skip
    assert command("config", "--job", file, "--chunk-size", "7").code == 0
    assert yaml.safe_load(file.read_text())["chunk_size"] == 7
    before = file.read_bytes()
    assert command("config", "--job", file).out.encode() == before, "without options it only shows"


def test_a_job_file_with_an_unknown_field_is_refused(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("chunksize: 3\n")
    done = command("config", "--job", file, "--input", "i.jsonl")
    assert done.code == 2
    assert "unknown fields chunksize; use any of input, image_root" in done.err
    assert file.read_text() == "chunksize: 3\n"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"server": {"endpoint": "http://a"}}, "has unknown fields endpoint; use any of endpoints,"),
        ({"server": {"api_keyy": "hunter22"}}, "has unknown fields api_keyy; use any of"),
        ({"recipe": {"temprature": 1}}, "has unknown fields temprature; use any of family,"),
        ({"recipe": {"max_tokens": 3}}, "recipe field max_tokens 3: Input should be greater than or equal to 16"),
        ({"recipe": {"max_visual_tokens": "many"}}, "recipe field max_visual_tokens 'many': Input should be a valid"),
        ({"server": {"api_key": ["hunter22"]}}, "server field api_key: Input should be a valid string"),
        (
            {"server": {"start": {"model_path": "m", "extra_arguments": [22]}}},
            "server field start.extra_arguments.0: Input should be a valid string",
        ),
        ({"server": {"api_key": 22}}, "server field api_key: Input should be a valid string"),
        ({"max_concurrency": True}, "--max-concurrency True: no field of a job is true or false"),
        ({"shard": False}, "--shard False: no field of a job is true or false"),
        ({"chunk_size": True}, "--chunk-size True: no field of a job is true or false"),
        ({"input": 5}, "--input 5: it must be a text, a path or a URL: quote it in YAML"),
        ({"input": ["a", 5]}, "--input: it must be a text, a path or a URL"),
        ({"output": None}, "--output None: it must be a text, a path or a URL"),
    ],
)
@pytest.mark.parametrize("name", ["annotate", "config"])
def test_a_mistake_in_a_job_file_is_refused_not_ignored(
    command: Command, tmp_path: Path, name: str, fields: dict[str, object], message: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({"input": "i.jsonl", "image_root": "r", "output": "o.jsonl"} | fields))
    done = command(name, "--job", file)
    assert done.code == 2
    assert message in done.err
    assert "hunter22" not in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err


def test_a_job_runs_from_its_file_and_the_commands_after_it_need_only_its_output(
    command: Command, make_job: MakeJob, stand_in: StandIn
) -> None:
    job = make_job(4)
    good = (job.images / job.names[0]).read_bytes()
    (job.images / job.names[0]).write_bytes(b"")
    file = job.folder / "job.yaml"
    options = job.arguments(stand_in.url, "--chunk-size", "2", "--max-concurrency", "4")
    assert command("config", "--job", file, *options).code == 0
    first = command("annotate", "--job", file, "--without-prefect")
    assert first.code == 1, first.err
    assert f"Failures: {job.failures}" in first.err
    (job.images / job.names[0]).write_bytes(good)
    assert command("retry", "--output", job.output, "--kinds", "timeout,server", "--without-prefect").code == 0
    assert len(lines_of(job.failures)) == 1, "there is none of these kinds"
    again = command("retry", "--output", job.output, "--without-prefect")
    assert again.code == 0, again.err
    assert len(lines_of(job.output)) == 4
    page = job.folder / "labeled.report.html"
    page.unlink()
    assert command("report", "--output", job.output).out.strip() == str(page)
    assert page.exists()
    assert json.loads((job.work / "job.json").read_text())["input"] == str(job.input), "a retry is not a new job"


def test_shards_are_merged_by_what_they_remember(command: Command, make_job: MakeJob, stand_in: StandIn) -> None:
    job = make_job(6)
    for shard in ("1/2", "2/2"):
        assert command("annotate", *job.arguments(stand_in.url), "--shard", shard, "--without-prefect").code == 0
    merged = command("merge-shards", "--output", job.output)
    assert merged.code == 0, merged.err
    assert [row["image_path"] for row in lines_of(job.output)] == job.names


@pytest.mark.parametrize("kinds", ["slow", "timeout,slow"])
def test_an_unknown_kind_of_failure_is_refused(command: Command, tmp_path: Path, kinds: str) -> None:
    done = command("retry", "--output", tmp_path / "labeled.jsonl", "--kinds", kinds, "--without-prefect")
    assert done.code == 2
    assert "--kinds slow is unknown: use missing" in done.err


def test_a_server_and_a_base_url_cannot_be_combined(command: Command, make_job: MakeJob) -> None:
    done = command("annotate", *make_job(1).arguments("http://a"), "--server", "server.yaml", "--without-prefect")
    assert done.code == 2
    assert "--server cannot be combined with --api-base" in done.err


def test_a_base_url_replaces_the_start_of_the_job_file(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("server:\n  model: m\n  start: {model_path: /models/m}\n")
    done = command("config", "--job", file, "--api-base", "http://gpu/v1")
    assert done.code == 0, done.err
    assert yaml.safe_load(done.out)["server"] == {"model": "m", "endpoints": ["http://gpu/v1"]}
