"""The checks before a start, and `python -m flows.serving`, which prints them."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from stand_in.ports import free_port
from tests.conftest import ROOT
from tests.inference.test_client import raw_server
from tests.serving.conftest import qwen_config
from vllm_annotate.cli.main import main
from vllm_annotate.serving.gpus import Gpu, find_gpus
from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.model_config import GIB
from vllm_annotate.serving.preflight import preflight, visible_gpus

MakeModel = Callable[..., Path]


def test_the_plan_is_printed_with_its_command_line_and_nothing_starts(
    vllm: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("32B-AWQ"), "Qwen2.5-VL-32B-AWQ")
    code = main(["check-server", "--model-path", str(model), "--executable", str(vllm), "--tensor-parallel-size", "2",
                 "--gpus", "0", "2", "--assume-gpus", "3x24"])  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "vLLM 0.32.0" in out
    assert "each GPU needs about 9.6 GiB of weights, 1.0 GiB of KV cache for one request of maximum length" in out
    assert f"{vllm} serve {model} --served-model-name Qwen2.5-VL-32B-AWQ" in out
    assert "CUDA_VISIBLE_DEVICES=0,2" in out
    assert "--tensor-parallel-size 2" in out


def test_a_problem_is_printed_with_what_would_work(
    vllm: Path, make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("32B-AWQ"), "Qwen2.5-VL-32B-AWQ")
    server = tmp_path / "server.yaml"
    server.write_text(f"start:\n  model_path: {model}\n  executable: {vllm}\n")
    code = main(["check-server", "--server", str(server), "--tensor-parallel-size", "3", "--assume-gpus", "3x23.6"])
    assert code == 2
    assert (
        "PROBLEM: TP=3 cannot split 40 heads: on 3 GPUs of 24 GiB use TP=2 (with 1 idle card), or PP=3"
        in capsys.readouterr().out
    )


def test_a_model_that_does_not_fit_is_refused_with_what_it_needs(
    vllm: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("32B-AWQ"), "Qwen2.5-VL-32B-AWQ")
    code = main(["check-server", "--model-path", str(model), "--executable", str(vllm), "--assume-gpus", "3x23.6"])
    assert code == 2
    out = capsys.readouterr().out
    assert "Qwen2.5-VL-32B-AWQ does not fit as one GPU: 19.3 GiB of weights, 2.0 GiB of KV cache" in out
    assert "use TP=2 (with 1 idle card), or PP=3" in out
    assert (
        main(
            [
                "check-server",
                "--model-path",
                str(model),
                "--executable",
                str(vllm),
                "--assume-gpus",
                "1x80",
                "--max-model-len",
                "32768",
            ]
        )
        == 0
    )


def test_more_replicas_than_cards_are_refused(
    vllm: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("7B"), "qwen")
    arguments = ["--model-path", str(model), "--executable", str(vllm), "--assume-gpus", "3x24"]
    assert main(["check-server", *arguments, "--data-parallel-size", "4"]) == 2
    assert (
        "4 GPUs needed for 4 replicas of one GPU each, 3 available: on 3 GPUs of 24 GiB use 3 replicas"
        in capsys.readouterr().out
    )


def test_replicas_get_their_own_ports_and_cards(
    vllm: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(qwen_config("7B"), "qwen")
    arguments = ["--model-path", str(model), "--executable", str(vllm), "--assume-gpus", "4x24", "--port", "9000"]
    main(["check-server", *arguments, "--data-parallel-size", "2", "--tensor-parallel-size", "2"])
    out = capsys.readouterr().out
    assert "# qwen at http://127.0.0.1:9001/v1" in out
    assert "CUDA_VISIBLE_DEVICES=0,1" in out
    assert "CUDA_VISIBLE_DEVICES=2,3" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model: set --model-path"),
        (["--model-path", "/m", "--assume-gpus", "three"], "--assume-gpus 'three' is not of the form NUMBERxGIB"),
        (["--model-path", "/m", "--port", "x"], "start.port 'x': Input should be a valid integer"),
        (["--server", "/nowhere.yaml"], "server '/nowhere.yaml' cannot be read"),
    ],
)
def test_bad_usage_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-server", *arguments]) == 2
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


def test_a_model_that_is_not_downloaded_is_not_checked(vllm: Path) -> None:
    found = preflight(Launch(model_path="Qwen/Qwen2.5-VL-7B-Instruct", executable=str(vllm)), None, "", [])
    assert not found.problems
    assert "vLLM will download it" in found.text()
    assert found.replicas[0].model == "Qwen2.5-VL-7B-Instruct"


def test_every_problem_is_named_at_once(vllm: Path, make_model: MakeModel) -> None:
    start = Launch(
        model_path=str(make_model(qwen_config("7B"))), executable="no-such-vllm", tensor_parallel_size=3,
        max_model_len=200_000, quantization="awq",
    )  # fmt: skip
    assert len(preflight(start, None, "", []).problems) == 4


def test_removed_flags_are_noted(vllm: Path, make_model: MakeModel) -> None:
    start = Launch(
        model_path=str(make_model(qwen_config("7B"))), executable=str(vllm), extra_arguments=["--disable-log-requests"]
    )
    found = preflight(start, None, "", [])
    assert "--disable-log-requests was removed after vLLM 0.10.0: left out" in found.notes
    assert "--disable-log-requests" not in found.replicas[0].command


def test_a_machine_without_nvml_has_no_gpus_and_a_reason() -> None:
    cards, why_none = find_gpus()
    assert cards or why_none


def test_with_more_gpus_than_needed_those_with_most_free_memory_are_used(vllm: Path, make_model: MakeModel) -> None:
    start = Launch(model_path=str(make_model(qwen_config("7B"))), executable=str(vllm), tensor_parallel_size=2)
    cards = [Gpu(0, "busy", 24 * GIB, 2 * GIB), Gpu(1, "free", 24 * GIB, 23 * GIB), Gpu(2, "free", 24 * GIB, 23 * GIB)]
    found = preflight(start, None, "", cards)
    assert found.replicas[0].environment["CUDA_VISIBLE_DEVICES"] == "1,2"


def test_a_small_card_beside_a_large_one_does_not_decide(vllm: Path, make_model: MakeModel) -> None:
    start = Launch(model_path=str(make_model(qwen_config("32B"))), executable=str(vllm))
    cards = [Gpu(0, "small", 8 * GIB, 8 * GIB), Gpu(1, "large", 80 * GIB, 80 * GIB)]
    assert not preflight(start, None, "", cards).problems


def test_cuda_visible_devices_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("3", [3]), ("0,2", [0, 2]), ("", None), ("GPU-8a1b", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus() == expected


def test_cards_are_counted_without_knowing_the_model(vllm: Path) -> None:
    start = Launch(model_path="Qwen/Qwen2.5-VL-7B-Instruct", executable=str(vllm), tensor_parallel_size=4)
    cards = [Gpu(index, "card", 24 * GIB, 24 * GIB) for index in range(2)]
    assert preflight(start, None, "", cards).problems == [
        "4 GPUs needed for TP=4, 2 available: lower tensor_parallel_size, pipeline_parallel_size or data_parallel_size"
    ]


def test_a_config_that_relies_on_transformers_defaults_is_not_a_problem(vllm: Path, make_model: MakeModel) -> None:
    start = Launch(
        model_path=str(make_model({"model_type": "gemma3", "text_config": {"hidden_size": 2560}})), executable=str(vllm)
    )
    found = preflight(start, None, "", [])
    assert not found.problems
    assert "lacks fields (num_attention_heads is None" in found.text()


def test_what_may_be_a_secret_is_not_printed(vllm: Path, make_model: MakeModel) -> None:
    start = Launch(
        model_path=str(make_model(qwen_config("7B"))), executable=str(vllm), environment={"HF_TOKEN": "hf_secret"}
    )
    text = preflight(start, None, "sesame", []).text()
    assert "HF_TOKEN=…" in text
    assert "hf_secret" not in text
    assert "sesame" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("environment: {SEED: 31415926}", "SEED is of type int, and must be text: write its value in quotes"),
        ("environment: [HF_TOKEN=hf_secret]", "it is of type list, and must be a mapping"),
        ("environment: {HF_TOKEN: hf_secret}\n  environment_from: [HF_TOKEN]", "remove it from one of them"),
        ("environment_from: [HF_TOKEN=hf_secret]", "'HF_TOKEN' is not the name of an environment variable"),
        ("environment_from: HF_TOKEN", "Input should be a valid list"),
        ("extra_arguments: [--api-key, hf_secret]", "--api-key has its own field, api_key of the server"),
        ("extra_arguments: --api-key hf_secret", "Input should be a valid list"),
        ("extra_arguments: [--seed, {a: hf_secret}]", "Input should be a valid string"),
        ("data_parallel_size: 60000\n  environment: {HF_TOKEN: hf_secret}", "set a lower port"),
        ("extra_arguments: [--hf-token, hf_secret]", "name HF_TOKEN in environment_from instead"),
    ],
)
def test_check_server_refuses_variables_without_showing_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(f"start:\n  model_path: m\n  {given}\n")
    assert main(["check-server", "--server", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: server field start")
    assert message in line
    assert not [secret for secret in ("31415926", "hf_secret") if secret in line]


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_refused_before_the_start(
    vllm: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    start = Launch(
        model_path=str(make_model(qwen_config("7B"))), executable=str(vllm), port=free_port(),
        environment_from=["OF_THIS_TEST", "PATH"],
    )  # fmt: skip
    if value is not None:
        monkeypatch.setenv("OF_THIS_TEST", value)
    (problem,) = preflight(start, None, "").problems
    assert "environment_from names OF_THIS_TEST, which is not set" in problem
    assert "set it in the environment of the command, or of the worker" in problem
    assert not preflight(start, None, "", []).problems, "nothing is known about another machine"
    monkeypatch.setenv("OF_THIS_TEST", "hf_secret")
    found = preflight(start, None, "")
    assert not found.problems
    assert "OF_THIS_TEST=…" in found.text()
    assert "hf_secret" not in found.text()


@pytest.mark.parametrize("flag", ["--api-key", "--api_key", "--port=9", "--host", "--served-model-name"])
def test_flags_that_have_a_field_are_refused(flag: str) -> None:
    with pytest.raises(ValidationError, match="has its own field"):
        Launch(model_path="/m", extra_arguments=[flag, "secret"])


def test_the_last_replica_needs_a_port_too() -> None:
    with pytest.raises(ValidationError, match="set a lower port"):
        Launch(model_path="/m", port=65_535, data_parallel_size=2)


async def test_a_port_with_a_program_that_does_not_speak_http_is_in_use(vllm: Path, make_model: MakeModel) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.close()

    async with raw_server(talk) as url:
        start = Launch(
            model_path=str(make_model(qwen_config("7B"))), executable=str(vllm), port=int(url.rpartition(":")[2])
        )
        found = await asyncio.to_thread(preflight, start, None, "")
    assert any("is in use by another program" in problem for problem in found.problems)
