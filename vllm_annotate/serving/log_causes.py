"""Finds in a server's log why it died, and what to do. The patterns match vLLM, PyTorch and Hugging Face."""

import re
from dataclasses import dataclass
from pathlib import Path

READ_BYTES = 400_000  # of the log's end
LAST_BYTES = 4_000
LAST_LINES = 4
# Lines that look like causes but are not.
NO_ERRORS = ("DEBUG ", "INFO ", "INFO:", "WARNING ", "[W", "W1", "W0")


@dataclass(frozen=True)
class Cause:
    """Why a server died; `line` is from its log."""

    line: str
    remedy: str
    is_memory: bool = False

    @property
    def summary(self) -> str:
        """The log line, shortened."""
        return self.line[:200] or "no cause in its log"

    def __str__(self) -> str:
        return f"{self.line[:400]}: {self.remedy}" if self.line else self.remedy


LESS_MEMORY = (
    "lower max_model_len, raise gpu_memory_utilization if the GPU is otherwise free, split over more GPUs, or use a "
    "quantized model"
)
# The first pattern that matches any line wins: the list is ordered from causes to consequences.
KNOWN: list[tuple[str, str]] = [
    (r"unrecognized arguments?:", "this version of vLLM does not know it: remove it from extra_arguments"),
    (r"argument \S+: (?:invalid|expected|ignored)", "correct that value in extra_arguments"),
    (r"Total number of attention heads .* must be divisible by tensor parallel size",
     "choose a tensor_parallel_size that divides them, or one replica per GPU (data_parallel_size)"),
    (r"AssertionError: \d+ is not divisible by \d+",
     "choose another tensor_parallel_size, or one replica per GPU (data_parallel_size)"),
    (r"World size \(\d+\) is larger than the number of available GPUs|max local gpu count",
     "lower tensor_parallel_size × pipeline_parallel_size to the number of GPUs"),
    (r"Not enough allowed NUMA nodes", "a CPU build needs one NUMA node per rank: lower tensor_parallel_size"),
    (r"is out of bounds for \d+ devices", "lower data_parallel_size to the number of GPUs"),
    (r"Address already in use|error while attempting to bind on address",
     "another program listens on that port: stop it or set another port"),
    (r"User-specified max_model_len .* is greater than the derived",
     "lower max_model_len to the model's limit"),
    (r"model'?s'? max seq len .*(?:KV cache)", LESS_MEMORY),
    (r"No available memory for the cache blocks", LESS_MEMORY),
    (r"Free memory on device .* is less than desired GPU memory utilization",
     "stop other programs that use the GPU (see nvidia-smi), or lower gpu_memory_utilization"),
    (r"Error in memory profiling",
     "another program took or freed GPU memory during startup: stop it, or start again"),
    (r"CUDA out of memory|OutOfMemoryError|not enough GPU memory|CUDA error: out of memory", LESS_MEMORY),
    (r"Insufficient space in /dev/shm|No space left on device.*shm|Bus error",
     "give the container more shared memory (--shm-size or --ipc=host)"),
    (r"Too many open files(?!.*can cause)", "raise the limit (ulimit -n 65535)"),
    (r"driver on your system is too old|CUDA driver version is insufficient",
     "update the NVIDIA driver, or install a vLLM built for an older CUDA"),
    (r"No CUDA GPUs are available|Found no NVIDIA driver|Failed to infer device type|libcuda\.so\.1: cannot open",
     "no GPU is visible: check nvidia-smi, the container's --gpus, and gpus"),
    (r"no kernel image is available|is not compatible with the current PyTorch installation",
     "this vLLM is not built for that GPU: install a version that is"),
    (r"Bfloat16 is only supported on GPUs", 'add "--dtype", "half" to extra_arguments'),
    (r"Cannot find the config file for \w+",
     "the model is not quantized that way: leave quantization empty, or use the model's quantized version"),
    (r"Quantization method specified in the model config .* does not match", "leave quantization empty"),
    (r"(?:Unknown|Invalid) quantization method", "leave quantization empty: the model's config.json names its own"),
    (r"quantization method \S+ is not supported for the current GPU|is not supported for quantization method",
     "use another quantization of the model, or a newer GPU"),
    (r"not aligned with the quantized weight shape|not divisible by +(?:group_size|min_thread)",
     "the quantization's groups cannot be split this way: choose a smaller tensor_parallel_size or replicas"),
    (r"contains custom code which must be executed|If the (?:model|tokenizer) is a custom",
     "the model comes with its own code: set trust_remote_code if you trust its author"),
    (r"gated repo", "accept the model's licence on Hugging Face and name HF_TOKEN in environment_from"),
    (r"offline mode is enabled|outgoing traffic has been disabled|couldn't connect to 'https://huggingface|"
     r"(?:Repo id must|HFValidationError|Invalid repository ID or local directory|not a valid model identifier)",
     "the folder does not exist and the model cannot be downloaded: check model_path"),
    (r"does not appear to have a file named|Cannot find any model weights|were not initialized from checkpoint|"
     r"SafetensorError|HeaderTooLarge|There is no module or parameter named",
     "model files are missing or corrupt: download the model again"),
    (r"Can't load tokenizer|Couldn't instantiate the backend tokenizer",
     "tokenizer files are missing: download the model again"),
    (r"architectures? .* (?:is|are) not supported|does not recognize this architecture|failed to be inspected",
     "this version of vLLM does not know the model: install a newer one"),
    (r"Pipeline parallelism is not supported for this model", "set pipeline_parallel_size to 1"),
    (r"NCCL error|DistBackendError",
     "the GPUs cannot communicate: try one replica per GPU, or NCCL_P2P_DISABLE=1 in environment"),
    (r"undefined symbol|ImportError|ModuleNotFoundError",
     "the vLLM installation is broken: reinstall it in its own environment"),
    (r"Worker proc .* died unexpectedly|Engine core proc .* died unexpectedly|EngineDeadError|EngineCore encountered",
     "a server process was killed, perhaps because memory ran out (see dmesg)"),
]  # fmt: skip
MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|not enough GPU memory")


def cause_of(log: Path) -> Cause:
    """The cause in a log; its last lines if no known cause is found."""
    text = _end_of(log, READ_BYTES)
    return cause_in(text) if text is not None else Cause("", f"its log {log} cannot be read")


def last_line(log: Path) -> str:
    """The last line of a log."""
    text = _end_of(log, LAST_BYTES)
    if text is None:
        return "its log cannot be read"
    lines = [line for line in map(_plain, text.splitlines()) if line]
    return lines[-1][-200:] if lines else "its log is empty"


def _end_of(log: Path, count: int) -> str | None:
    """The last bytes of a file; None if it cannot be read, or is none: a pipe would never end."""
    try:
        if not log.is_file():
            return None
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - count))
            return file.read(count).decode(errors="replace")
    except OSError:
        return None


def cause_in(text: str) -> Cause:
    """The cause in the text of a log."""
    lines = [line for line in map(_plain, text.splitlines()) if line and not line.startswith(NO_ERRORS)]
    lines = [re.sub(r"^(?:ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\]\s*", "", line).strip() for line in lines]
    for pattern, remedy in KNOWN:
        for line in lines:
            if re.search(pattern, line):
                return Cause(line, remedy, is_memory=MEMORY.search(line) is not None)
    last = " | ".join(line[:300] for line in lines[-LAST_LINES:])
    return Cause(last, "no known cause; see the log") if last else Cause("", "exited without an error message")


def _plain(line: str) -> str:
    """A log line without colours and process prefixes."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", line)
    return re.sub(r"^\(\w+(?: \w+)*(?: pid=\d+)?\)\s*", "", line.strip()).strip()
