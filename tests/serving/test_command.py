"""The command line for a given version of vLLM."""

import json
from pathlib import Path

import pytest

from vllm_annotate.errors import UsageError
from vllm_annotate.recipe.image_budget import ImageBudget
from vllm_annotate.serving.command import (
    Version,
    find_version,
    is_as_good,
    serve_command,
    server_environment,
    translated,
)
from vllm_annotate.serving.launch import Launch

CURRENT: Version = (0, 32, 0)


def command(version: Version = CURRENT, **fields: object) -> list[str]:
    launch = Launch(model_path="/models/qwen", **fields)
    return serve_command(launch, version, "qwen", launch.port, 8192)[0]


def value_of(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_the_command_is_a_list_with_what_suits_batches_of_single_images() -> None:
    arguments = command(tensor_parallel_size=2, quantization="awq", gpu_memory_utilization=0.95)
    assert arguments[:3] == ["vllm", "serve", "/models/qwen"]
    assert value_of(arguments, "--tensor-parallel-size") == "2"
    assert value_of(arguments, "--gpu-memory-utilization") == "0.95"
    assert value_of(arguments, "--host") == "127.0.0.1"
    assert value_of(arguments, "--mm-processor-cache-gb") == "0"
    assert json.loads(value_of(arguments, "--structured-outputs-config")) == {
        "backend": "guidance", "disable_any_whitespace": True,
    }  # fmt: skip
    assert "--trust-remote-code" not in arguments
    assert "--disable-log-requests" not in arguments


def test_the_server_gets_the_image_budget_of_the_recipe() -> None:
    budget = ImageBudget(min_pixels=100_352, max_pixels=1_003_520)
    launch = Launch(model_path="/models/qwen")
    arguments, _ = serve_command(launch, CURRENT, "qwen", 8000, 8192, budget)
    assert json.loads(value_of(arguments, "--mm-processor-kwargs")) == {"min_pixels": 100_352, "max_pixels": 1_003_520}
    assert is_as_good(command(), arguments)
    assert is_as_good(arguments, arguments)
    assert "--mm-processor-kwargs" not in serve_command(launch, (0, 5, 5), "qwen", 8000, 8192, budget)[0]


@pytest.mark.parametrize(
    ("least", "most", "good"),
    [
        (100, 1000, True),
        (50, 2000, True),
        (100, 900, False),
        (101, 1000, False),
        ("4", 2000, False),
        (None, 2000, False),
    ],
)
def test_a_running_server_serves_for_a_budget_that_its_own_includes(least: object, most: int, good: bool) -> None:
    wanted = ["vllm", "--mm-processor-kwargs", '{"min_pixels": 100, "max_pixels": 1000}', "--port", "8000"]
    running = ["vllm", "--mm-processor-kwargs", json.dumps({"min_pixels": least, "max_pixels": most}), "--port", "8000"]
    assert is_as_good(running, wanted) is good
    assert not is_as_good([*running, "--dtype", "half"], wanted)
    assert not is_as_good(["vllm", "--mm-processor-kwargs", "{", "--port", "8000"], wanted)


@pytest.mark.parametrize("own", [["--mm-processor-kwargs={}"], ["--mm-processor-kwargs.max_pixels", "50176"]])
def test_an_image_budget_of_ones_own_wins(own: list[str]) -> None:
    budget = ImageBudget(min_pixels=100_352, max_pixels=1_003_520)
    launch = Launch(model_path="/models/qwen", extra_arguments=own)
    arguments, _ = serve_command(launch, CURRENT, "qwen", 8000, 8192, budget)
    assert arguments[-len(own) :] == own
    assert "--mm-processor-kwargs" not in arguments


def test_extra_arguments_win() -> None:
    own = ["--structured-outputs-config", '{"backend": "xgrammar"}', "--limit-mm-per-prompt={}"]
    arguments = command(extra_arguments=own)
    assert arguments[-3:] == own
    assert arguments.count("--structured-outputs-config") == 1
    assert "--limit-mm-per-prompt" not in arguments


@pytest.mark.parametrize(
    ("version", "there", "absent"),
    [
        ((0, 32, 0), ["--shutdown-timeout", "--structured-outputs-config"], ["--guided-decoding-backend"]),
        ((0, 11, 0), ["--structured-outputs-config", "--mm-processor-cache-gb"], ["--shutdown-timeout"]),
        ((0, 10, 0), ["--guided-decoding-disable-any-whitespace", "--disable-mm-preprocessor-cache",
                      "--disable-log-requests"], ["--mm-processor-cache-gb"]),
        ((0, 8, 4), ["--limit-mm-per-prompt", "--guided-decoding-backend"], ["--structured-outputs-config"]),
        ((0, 6, 5), ["--limit-mm-per-prompt"], ["--disable-mm-preprocessor-cache", "--guided-decoding-backend"]),
    ],
)  # fmt: skip
def test_older_versions_get_the_flags_they_know(version: Version, there: list[str], absent: list[str]) -> None:
    arguments = command(version)
    assert not set(there) - set(arguments)
    assert not set(absent) & set(arguments)


def test_the_limit_of_images_was_not_json_before_0_8_5() -> None:
    assert value_of(command((0, 8, 4)), "--limit-mm-per-prompt") == "image=1"
    assert json.loads(value_of(command((0, 8, 5)), "--limit-mm-per-prompt"))["image"] == 1


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["--disable-log-requests"], []),
        (["--guided-decoding-backend", "xgrammar"], ["--structured-outputs-config", '{"backend": "xgrammar"}']),
        (["--guided-decoding-backend=guidance:x"], ["--structured-outputs-config", '{"backend": "guidance"}']),
        (["--disable-mm-preprocessor-cache"], ["--mm-processor-cache-gb", "0"]),
        (["--swap-space", "4", "--enforce-eager"], ["--enforce-eager"]),
        (["--task", "generate"], []),
        (["--worker-use-ray"], ["--distributed-executor-backend", "ray"]),
        (["--max-num-seqs", "16"], ["--max-num-seqs", "16"]),
    ],
)
def test_a_removed_flag_is_translated_and_noted(given: list[str], taken: list[str]) -> None:
    arguments, notes = translated(given, CURRENT)
    assert arguments == taken
    assert bool(notes) == (given != taken)
    assert all("was removed after vLLM" in note for note in notes)


def test_a_flag_that_an_old_version_still_has_stays() -> None:
    assert translated(["--swap-space", "4"], (0, 10, 0)) == (["--swap-space", "4"], [])


def test_the_key_is_in_the_environment_and_not_in_the_arguments() -> None:
    launch = Launch(model_path="/models/qwen", environment={"NCCL_P2P_DISABLE": "1"})
    variables = server_environment(launch, [2, 3], "sesame")
    assert variables["VLLM_API_KEY"] == "sesame"
    assert variables["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert variables["NCCL_P2P_DISABLE"] == "1"
    assert not any("sesame" in argument for argument in command())


def test_a_variable_that_the_server_needs_comes_from_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_machine")
    launch = Launch(model_path="/models/qwen", environment_from=["HF_TOKEN"], environment={"A": "b"})
    variables = server_environment(launch, [], "")
    assert (variables["HF_TOKEN"], variables["A"]) == ("hf_of_this_machine", "b")


def test_the_version_is_found_between_log_lines(vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_VERSION", "0.11.2+cu129")
    assert find_version(str(vllm)) == ((0, 11, 2), "0.11.2+cu129")


def test_a_missing_or_broken_vllm_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"command 'vllm-of-nobody' not found.*pip install vllm"):
        find_version("vllm-of-nobody")
    broken = tmp_path / "vllm"
    broken.write_text("#!/bin/sh\necho 'ModuleNotFoundError: torch' >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UsageError, match=r"ModuleNotFoundError: torch.*reinstall vLLM"):
        find_version(str(broken))
