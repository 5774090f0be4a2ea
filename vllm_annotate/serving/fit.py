"""Decides whether a model fits on these GPUs with a given split, and suggests splits that do.

vLLM's rules (from 0.32.0): the tensor parallel size divides the attention heads, inner widths, the vision tower, the
groups of a quantization and the padded vocabulary; KV heads are divisible by it or divide it; pipeline stages share
the layers, evenly or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_annotate.serving.gpus import Gpu
from vllm_annotate.serving.model_config import GIB, ModelConfig

# Activations, CUDA graphs and memory outside PyTorch: 1.7 to 2.9 GiB in reports on Qwen2.5-VL.
LEAST_OVERHEAD, USUAL_OVERHEAD = 1.7 * GIB, 3.0 * GIB
DEFAULT_UTILIZATION = 0.9
VOCABULARY_PADDING = 64


@dataclass(frozen=True)
class Split:
    """How to spread a model: over tensor × pipeline GPUs, `replicas` times."""

    tensor: int = 1
    pipeline: int = 1
    replicas: int = 1

    @property
    def gpus(self) -> int:
        """Number of GPUs it needs."""
        return self.tensor * self.pipeline * self.replicas

    def __str__(self) -> str:
        parts = [f"TP={self.tensor}"] if self.tensor > 1 else []
        parts += [f"PP={self.pipeline}"] if self.pipeline > 1 else []
        each = f"{self.tensor * self.pipeline} GPUs" if self.tensor * self.pipeline > 1 else "one GPU"
        if self.replicas > 1:
            of_parts = f" ({', '.join(parts)})" if parts else ""
            return f"{self.replicas} replicas of {each} each{of_parts}"
        return ", ".join(parts) or each


@dataclass(frozen=True)
class Need:
    """What one GPU of a replica needs and has, in bytes."""

    weights: float
    kv_cache: float  # of one request of maximum length
    usable: float

    @property
    def fits(self) -> bool:
        """Whether vLLM can start."""
        return self.weights + self.kv_cache + LEAST_OVERHEAD <= self.usable

    @property
    def is_tight(self) -> bool:
        """Whether it may still fail, or run few requests at once."""
        return self.weights + 4 * self.kv_cache + USUAL_OVERHEAD > self.usable

    def __str__(self) -> str:
        return (
            f"{self.weights / GIB:.1f} GiB of weights, {self.kv_cache / GIB:.1f} GiB of KV cache for one request of "
            f"maximum length, {LEAST_OVERHEAD / GIB:.1f} to {USUAL_OVERHEAD / GIB:.1f} GiB of activations; "
            f"{self.usable / GIB:.1f} GiB are usable"
        )


def split_problems(model: ModelConfig, split: Split) -> list[str]:
    """Why vLLM would refuse this split of the model."""
    tensor, problems = split.tensor, []
    if model.heads % tensor:
        problems.append(f"TP={tensor} cannot split {model.heads} heads")
    elif model.kv_heads % tensor and tensor % model.kv_heads:
        problems.append(f"TP={tensor} cannot split {model.kv_heads} KV heads")
    if model.vision_heads % tensor:
        problems.append(f"TP={tensor} cannot split the {model.vision_heads} heads of the vision tower")
    elif model.vision_intermediate_size % tensor:
        problems.append(f"TP={tensor} cannot split the vision tower's inner width of {model.vision_intermediate_size}")
    if model.intermediate_size % tensor:
        problems.append(f"TP={tensor} cannot split an intermediate size of {model.intermediate_size}")
    elif model.group_size and model.group_size > 0 and model.intermediate_size // tensor % model.group_size:
        problems.append(
            f"TP={tensor} cannot split an intermediate size of {model.intermediate_size} into "
            f"{model.quantization} groups of {model.group_size}"
        )
    if -(-model.vocab_size // VOCABULARY_PADDING) * VOCABULARY_PADDING % tensor:
        problems.append(f"TP={tensor} cannot split a vocabulary of {model.vocab_size}")
    if split.pipeline > model.layers:
        problems.append(f"PP={split.pipeline} exceeds the model's {model.layers} layers")
    return problems


def need(model: ModelConfig, split: Split, max_model_len: int, gpus: Sequence[Gpu], utilization: float | None) -> Need:
    """What the fullest GPU of a replica needs, and what the smallest has."""
    layers_of_fullest = -(-model.layers // split.pipeline) / model.layers
    kv_split = min(split.tensor, model.kv_heads)
    return Need(
        weights=model.weight_bytes * layers_of_fullest / split.tensor,
        kv_cache=model.kv_bytes_per_token * max_model_len * layers_of_fullest / kv_split,
        usable=min(gpu.memory for gpu in gpus) * (utilization or DEFAULT_UTILIZATION),
    )


def what_fits(model: ModelConfig, max_model_len: int, gpus: Sequence[Gpu], utilization: float | None) -> list[Split]:
    """The splits that fit on these GPUs, best first."""
    splits = _allowed(model, len(gpus))
    fitting = [split for split in splits if need(model, split, max_model_len, gpus, utilization).fits]
    # Replicas need no communication between GPUs; a tensor split has a lower latency than a pipeline.
    return sorted(fitting, key=lambda split: (-split.replicas, split.pipeline, split.tensor))


def _allowed(model: ModelConfig, count: int) -> list[Split]:
    """The splits over `count` GPUs that vLLM accepts, whether they fit or not."""
    splits = (
        Split(tensor, pipeline, count // (tensor * pipeline))
        for tensor in range(1, count + 1)
        for pipeline in range(1, count // tensor + 1)
    )
    return [split for split in splits if not split_problems(model, split)]


def _needed(
    model: ModelConfig, split: Split, max_model_len: int, gpus: Sequence[Gpu], utilization: float | None
) -> float:
    needs = need(model, split, max_model_len, gpus, utilization)
    return needs.weights + needs.kv_cache + LEAST_OVERHEAD


def suggestion(model: ModelConfig, max_model_len: int, gpus: Sequence[Gpu], utilization: float | None) -> str:
    """A sentence with what would fit on these GPUs: the most replicas, a tensor split, a pipeline."""
    fitting = what_fits(model, max_model_len, gpus, utilization)
    if not fitting:
        least = min(
            _allowed(model, len(gpus)), key=lambda split: _needed(model, split, max_model_len, gpus, utilization)
        )
        needed = _needed(model, least, max_model_len, gpus, utilization)
        usable = need(model, least, max_model_len, gpus, utilization).usable
        return (
            f"on {_cards(gpus)} no split fits, as even {least} needs {needed / GIB:.1f} of {usable / GIB:.1f} GiB "
            f"per GPU: use a smaller or quantized model, or lower max_model_len from {max_model_len}"
        )
    by_tensor = [split for split in fitting if split.pipeline == 1 < split.tensor]
    by_pipeline = [split for split in fitting if split.tensor == 1 < split.pipeline]
    shown = fitting[:1] + [max(splits, key=lambda split: split.gpus) for splits in (by_tensor, by_pipeline) if splits]
    words = [f"{split}{_idle(len(gpus) - split.gpus)}" for split in dict.fromkeys(shown)]
    return f"on {_cards(gpus)} use " + ", ".join(words[:-1]) + (", or " if len(words) > 1 else "") + words[-1]


def _idle(cards: int) -> str:
    return "" if not cards else f" (with {cards} idle card{'s' if cards > 1 else ''})"


def _cards(gpus: Sequence[Gpu]) -> str:
    sizes = sorted({round(gpu.memory / GIB) for gpu in gpus})
    return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} of {' and '.join(map(str, sizes))} GiB"
