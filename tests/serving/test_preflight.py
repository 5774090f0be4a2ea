"""What is known before a start, and `python -m flows.serving`, which prints it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.serving.__main__ import main
from flows.serving.gpus import find_gpus
from flows.serving.launch import Launch
from flows.serving.preflight import preflight
from tests.conftest import ROOT
from tests.serving.conftest import qwen_config

MakeModel = Callable[..., Path]


def test_the_plan_is_printed_with_its_command_line_and_nothing_starts(
    vllm: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("32B-AWQ"), "Qwen2.5-VL-32B-AWQ")
    code = main(["--model-path", str(model), "--executable", str(vllm), "--tensor-parallel-size", "2",
                 "--gpus", "0", "2", "--assume-gpus", "3x24"])  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "vLLM 0.32.0" in out
    assert "each GPU needs about 9.6 GiB of weights, 1.0 GiB of KV cache for one longest request" in out
    assert f"{vllm} serve {model} --served-model-name Qwen2.5-VL-32B-AWQ" in out
    assert "CUDA_VISIBLE_DEVICES=0,2" in out
    assert "--tensor-parallel-size 2" in out


def test_a_problem_is_printed_with_what_would_work(
    vllm: Path, make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("32B-AWQ"), "Qwen2.5-VL-32B-AWQ")
    server = tmp_path / "server.yaml"
    server.write_text(f"start:\n  model_path: {model}\n  executable: {vllm}\n")
    code = main(["--server", str(server), "--tensor-parallel-size", "3", "--assume-gpus", "3x23.6"])
    assert code == 2
    assert (
        "PROBLEM: TP=3 cannot split 40 heads: on 3 GPUs of 24 GiB use TP=2 (with 1 idle card), or PP=3"
        in capsys.readouterr().out
    )


def test_a_model_that_does_not_fit_is_told_with_what_it_needs(
    vllm: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("32B-AWQ"), "Qwen2.5-VL-32B-AWQ")
    code = main(["--model-path", str(model), "--executable", str(vllm), "--assume-gpus", "3x23.6"])
    assert code == 2
    out = capsys.readouterr().out
    assert "Qwen2.5-VL-32B-AWQ does not fit as one GPU: 19.3 GiB of weights, 2.0 GiB of KV cache" in out
    assert "use TP=2 (with 1 idle card), or PP=3" in out
    assert (
        main(
            ["--model-path", str(model), "--executable", str(vllm), "--assume-gpus", "1x80", "--max-model-len", "32768"]
        )
        == 0
    )


def test_more_replicas_than_cards_are_refused(
    vllm: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("7B"), "qwen")
    assert (
        main(
            [
                "--model-path",
                str(model),
                "--executable",
                str(vllm),
                "--data-parallel-size",
                "4",
                "--assume-gpus",
                "3x24",
            ]
        )
        == 2
    )
    assert "4 replicas of one GPU each takes 4 GPUs of 3: on 3 GPUs of 24 GiB use 3 replicas" in capsys.readouterr().out


def test_replicas_get_their_own_ports_and_cards(
    vllm: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("7B"), "qwen")
    main(["--model-path", str(model), "--executable", str(vllm), "--assume-gpus", "4x24", "--port", "9000",
          "--data-parallel-size", "2", "--tensor-parallel-size", "2"])  # fmt: skip
    out = capsys.readouterr().out
    assert "# qwen at http://127.0.0.1:9001/v1" in out
    assert "CUDA_VISIBLE_DEVICES=0,1" in out
    assert "CUDA_VISIBLE_DEVICES=2,3" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which model? Set --model-path"),
        (["--model-path", "/m", "--assume-gpus", "three"], "--assume-gpus 'three' is not of the form 3x24"),
        (["--model-path", "/m", "--port", "x"], "port 'x': Input should be a valid integer"),
        (["--server", "/nowhere.yaml"], "server '/nowhere.yaml' cannot be read"),
    ],
)
def test_bad_usage_is_told_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_it_runs_as_a_module(vllm: Path, make_model: MakeModel) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.serving",
        "--model-path",
        str(make_model(qwen_config("3B"))),
        "--executable",
        str(vllm),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "vLLM 0.32.0" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_model_that_is_not_here_yet_is_not_checked(vllm: Path) -> None:
    found = preflight(Launch(model_path="Qwen/Qwen2.5-VL-7B-Instruct", executable=str(vllm)), None, "", [])
    assert not found.problems
    assert "vLLM will download it" in found.text()
    assert found.replicas[0].model == "Qwen2.5-VL-7B-Instruct"


def test_every_problem_is_named_at_once(vllm: Path, make_model: MakeModel) -> None:
    start = Launch(
        model_path=str(make_model(qwen_config("7B"))), executable="no-such-vllm", tensor_parallel_size=3,
        max_model_len=200_000, allowed_media_folder="/nowhere",
    )  # fmt: skip
    assert len(preflight(start, None, "", []).problems) == 4


def test_flags_that_are_gone_are_noted(vllm: Path, make_model: MakeModel) -> None:
    start = Launch(
        model_path=str(make_model(qwen_config("7B"))), executable=str(vllm), extra_arguments=["--disable-log-requests"]
    )
    found = preflight(start, None, "", [])
    assert "--disable-log-requests is gone since vLLM 0.10.0: left out" in found.notes
    assert "--disable-log-requests" not in found.replicas[0].command


def test_a_machine_without_nvml_has_no_gpus_and_a_reason() -> None:
    cards, why_none = find_gpus()
    assert cards or why_none
