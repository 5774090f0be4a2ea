"""Secrets of a run are in nothing that it writes, says or sends to Prefect: whole runs, and all that they leave."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stand_in.ports import free_port
from tests.conftest import Job, ask_prefect, lines_of
from tests.serving.conftest import arguments, make_model, qwen_config, vllm
from vllm_annotate.serving.record import read_record, record_path

__all__ = ["make_model", "vllm"]  # fixtures
PIECE = 6  # characters of a secret that would be too many
IN_THE_BLOCK = {"api_key": "sk-4bTq9LxWv2RzNe7Y", "OWN_TOKEN": "own-Jp3kS8dFg5HmC1aQ"}
IN_THE_ENVIRONMENT = {
    "HF_TOKEN": "hf_Zt6yUi0oPb4VnMx",
    "AWS_ACCESS_KEY_ID": "AKIA9WQ2ER5TY8UI",
    "AWS_SECRET_ACCESS_KEY": "aws+7Gh1Jk4Lz0Xc3Vb",
    "HTTPS_PROXY": "http://user:prx-2Sd5Fg8Hj@127.0.0.1:9",
}
PASSWORD = IN_THE_ENVIRONMENT["HTTPS_PROXY"].partition("user:")[2].partition("@")[0]
SECRETS = [*IN_THE_BLOCK.values(), *list(IN_THE_ENVIRONMENT.values())[:-1], PASSWORD]


def pieces_in(text: str) -> set[str]:
    """Pieces of the secrets that a text shows."""
    pieces = {secret[at : at + PIECE] for secret in SECRETS for at in range(len(secret) - PIECE + 1)}
    return {piece for piece in pieces if piece in text}


def command_lines(group: list[int]) -> str:
    """What `ps` shows of these processes."""
    return "".join(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in group)


def everything_of_prefect(api: str) -> Iterator[tuple[str, str]]:
    """All that a Prefect server shows of its latest runs."""
    for what in ("flow_runs", "task_runs", "artifacts", "logs", "block_documents", "events"):
        page = 50 if what == "events" else 200
        yield what, json.dumps(ask_prefect(api, f"/{what}/filter", limit=page), ensure_ascii=False)


@pytest.fixture
def started_job(make_job: Callable[..., Job], vllm: Path, make_model: Callable[..., Path]) -> Callable[..., Job]:
    """A job that starts its server, which gets secrets in every way there is."""

    def make(count: int, faults: list[dict[str, Any]]) -> Job:
        job = make_job(count)
        start = {
            "model_path": str(make_model(qwen_config("7B"), "qwen2.5-vl-7b")), "executable": str(vllm),
            "port": free_port(), "keep": True,
            "environment": {"OWN_TOKEN": IN_THE_BLOCK["OWN_TOKEN"], "STAND_IN_FAULTS": json.dumps(faults)},
            "environment_from": ["HF_TOKEN"],
        }  # fmt: skip
        fields = {"api_key": IN_THE_BLOCK["api_key"], "start": start}
        (job.folder / "server.yaml").write_text(yaml.safe_dump(fields))
        return job

    return make


def run_and_search(job: Job, prefect_api: str, tmp_path: Path) -> None:
    """Runs a job whose server was told all secrets, and looks for them in all that is left."""
    port = yaml.safe_load((job.folder / "server.yaml").read_text())["start"]["port"]
    ran = job.run_with(arguments(job, "--error-budget", "1"), NO_PROXY="127.0.0.1,localhost", **IN_THE_ENVIRONMENT)
    record = read_record(record_path(port))
    assert record is not None, ran.stderr
    try:
        own = Path(f"/proc/{max(record.group)}/environ").read_text()
        assert all(secret in own for secret in SECRETS), "the server has them"
        assert not pieces_in(command_lines(record.group))
    finally:
        record.end()
    assert ran.returncode == 1, ran.stderr
    assert lines_of(job.output)
    failures = [row["failure"]["message"] for row in lines_of(job.failures)]
    assert any("'Bearer ***" in message for message in failures), failures
    assert not pieces_in(ran.stdout + ran.stderr)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "server.yaml":
            assert not pieces_in(path.read_bytes().decode(errors="replace")), path
    for what, shown in everything_of_prefect(prefect_api):
        assert not pieces_in(shown), what


def test_no_secret_is_in_what_a_run_leaves(started_job: Callable[..., Job], prefect_api: str, tmp_path: Path) -> None:
    echo: dict[str, Any] = {"kind": "echo", "count": None}
    faults = [
        echo | {"match": "caption of 0000"},
        echo | {"match": "caption of 0001", "status": 500},
        {"kind": "text", "text": "an answer that cannot be parsed", "match": "caption of 0002", "count": None},
    ]
    run_and_search(started_job(8, faults), prefect_api, tmp_path)


def test_no_piece_of_the_key_is_left_however_a_server_or_a_limit_cuts_it(
    started_job: Callable[..., Job], prefect_api: str, tmp_path: Path
) -> None:
    echo: dict[str, Any] = {"kind": "echo", "count": None}
    faults = [
        echo | {"text": "x" * (number * 4), "match": f"caption of {number:04d}", "status": 400, "characters": length}
        for number, length in enumerate([90, 100, 110, 120, 130, 140, 150, 160, 170], 1)  # one is answered first
    ]
    # Where the client shortens a message, at 500 characters and elsewhere, wherever the key stands in it.
    faults += [
        echo | {"text": "x" * length, "match": f"caption of {number:04d}"}
        for number, length in enumerate(range(300, 500, 9), len(faults) + 1)
    ]
    run_and_search(started_job(len(faults) + 4, faults), prefect_api, tmp_path)
