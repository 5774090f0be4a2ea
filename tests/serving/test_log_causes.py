"""Causes in a server's log, from vLLM, PyTorch and Hugging Face."""

import os
from pathlib import Path

import pytest

from vllm_annotate.serving.log_causes import cause_in, cause_of, last_line

TRACE = "(EngineCore pid=71) ERROR 11-22 22:04:11 [core.py:1510] Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("vllm: error: unrecognized arguments: --disable-log-requests", "remove it from extra_arguments"),
        ("ValueError: Total number of attention heads (40) must be divisible by tensor parallel size (3).", "one replica per GPU"),
        ("OSError: [Errno 98] Address already in use", "set another port"),
        ("ValueError: User-specified max_model_len (8192) is greater than the derived max_model_len "
         "(max_position_embeddings=4096 or model_max_length=None in model's config.json).", "to the model's limit"),
        ("ValueError: To serve at least one request with the model's max seq len (8192), (2.00 GiB KV cache is needed, which is "
         "larger than the available KV cache memory (0.93 GiB).", "lower max_model_len"),
        ("ValueError: The model's max seq len (8192) is larger than the maximum number of tokens that can be stored in KV "
         "cache (2400).", "lower max_model_len"),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "lower max_model_len"),
        ("ValueError: Free memory on device cuda:0 (3.1/23.6 GiB) on startup is less than desired GPU memory utilization "
         "(0.9, 21.2 GiB).", "nvidia-smi"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB.", "split over more GPUs"),
        ("ValueError: Invalid repository ID or local directory specified: '/models/qwn'.", "check model_path"),
        ("huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name'", "check model_path"),
        ("ValueError: Cannot find the config file for awq", "leave quantization empty"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", "update the NVIDIA driver"),
        ("RuntimeError: No CUDA GPUs are available", "check nvidia-smi"),
        ("ValueError: The quantization method awq_marlin is not supported for the current GPU. Minimum capability: 75.", "newer GPU"),
        ("ValueError: The repository contains custom code which must be executed to correctly load the model.", "trust_remote_code"),
        ("ValueError: World size (4) is larger than the number of available GPUs (3) in this node.", "to the number of GPUs"),
    ],
)  # fmt: skip
def test_a_known_cause_has_its_remedy(line: str, remedy: str) -> None:
    log = f"INFO 11-22 22:04:01 [utils.py:1] args: {{'trust_remote_code': True}}\n{TRACE}{line}\nRuntimeError: Engine core "
    cause = cause_in(log + "initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}\n")
    assert cause.line == line
    assert remedy in cause.remedy


def test_running_out_of_memory_is_recognized() -> None:
    assert cause_in("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB.").is_memory
    assert not cause_in("OSError: [Errno 98] Address already in use").is_memory


def test_the_consequence_is_not_taken_for_the_cause() -> None:
    dead = "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."
    assert "out of memory" in cause_in(f"{dead}\nCUDA out of memory. Tried to allocate 1 GiB\n{dead}").line
    assert cause_in(dead).line == dead


def test_colours_and_process_names_are_removed() -> None:
    line = "\x1b[0;36m(EngineCore pid=71)\x1b[0;0m ERROR 11-22 22:04:11 [core.py:9] ValueError: Cannot find the config file for awq"
    assert cause_in(line).line == "ValueError: Cannot find the config file for awq"


def test_an_unknown_cause_shows_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_bytes(b"\xff\n" * 3 + b"INFO 11-22 22:00:00 [a.py:1] fine\nsomething nobody has seen before\n\n")
    assert "something nobody has seen before" in str(cause_of(log))
    log.write_bytes(b"")
    assert "without an error message" in str(cause_of(log))
    assert "cannot be read" in str(cause_of(tmp_path / "absent.log"))


def test_a_log_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for log in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("a\0b")):
        assert "cannot be read" in str(cause_of(log))
        assert last_line(log) == "its log cannot be read"


def test_the_last_line_of_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text("x" * 10_000 + "\n\x1b[0;36m(EngineCore pid=71)\x1b[0;0m loading 3 of 9\n\n")
    assert last_line(log) == "loading 3 of 9"
    log.write_text("")
    assert last_line(log) == "its log is empty"
