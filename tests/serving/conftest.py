"""A `vllm` command whose server is the stand-in, and model folders with a config.json."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stand_in.ports import free_port
from tests.conftest import ROOT, Job
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.record import ServerRecord, read_record, record_path

# The sizes in Qwen's own config.json files; the AWQ version of the 72B pads its intermediate size.
QWEN = {
    "3B": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
           "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064},
    "32B": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
            "intermediate_size": 27648, "vocab_size": 152064},
    "72B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "intermediate_size": 29568, "vocab_size": 152064},
}  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["visual"]}


def qwen_config(size: str) -> dict[str, Any]:
    """config.json of a Qwen2.5-VL of that size, such as 7B or 72B-AWQ."""
    name, _, quantized = size.partition("-")
    vision = {
        "intermediate_size": 3420 if name in ("3B", "7B") else 3456,
        "hidden_size": 1280,
        "num_heads": 16,
        "depth": 32,
    }
    config = {"model_type": "qwen2_5_vl", "max_position_embeddings": 128_000, "vision_config": vision} | QWEN[name]
    if quantized:
        config |= {"quantization_config": AWQ, "vision_config": {"intermediate_size": vision["intermediate_size"]}}
        config |= {"intermediate_size": 29696} if name == "72B" else {}
    return config


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Creates a model folder from a config.json."""

    def make(config: dict[str, Any], name: str = "model") -> Path:
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The command, controlled by environment variables. Checks that no process of it is left."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m stand_in.vllm "$@"\n')
    command.chmod(0o755)
    yield command
    assert not processes_with(str(command), "stand_in.vllm serve", f"{tmp_path}")


@pytest.fixture
def launch(vllm: Path, make_model: Callable[..., Path]) -> Callable[..., Launch]:
    model, port = make_model(qwen_config("7B"), "qwen2.5-vl-7b"), free_port()

    def make(**fields: Any) -> Launch:
        return Launch(
            **{
                "model_path": str(model),
                "executable": str(vllm),
                "port": port,
                "start_timeout_seconds": 30,
                "linger_seconds": 4,
            }
            | fields
        )

    return make


def processes_with(*words: str) -> list[int]:
    """Processes whose command line has one of the words and this test's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words[-1] in command and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


def arguments(job: Job, *more: str) -> list[str]:
    """The command line of a job whose server.yaml says how to start the server."""
    paths = {
        "--input": job.input,
        "--image-root": job.images,
        "--output": job.output,
        "--server": job.folder / "server.yaml",
    }
    return [*(str(word) for pair in paths.items() for word in pair), *more]


def port_of(job: Job) -> int:
    """The URL of the server in its server.yaml."""
    return int(yaml.safe_load((job.folder / "server.yaml").read_text())["start"]["port"])


def wait_for_answers(job: Job, seconds: float = 60) -> ServerRecord:
    """Waits until the first answers are on disk; returns the record of the server."""
    deadline = time.monotonic() + seconds
    while not any(part.stat().st_size for part in job.work.glob("parts/*.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    record = read_record(record_path(port_of(job)))
    assert record is not None
    return record
