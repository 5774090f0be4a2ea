"""Reads from a model's config.json how it can be split and how much memory it needs.

Text fields are at the top (Qwen2.5-VL), in `text_config` (Qwen3-VL, GLM, Kimi), `llm_config` (InternVL) or
`language_config` (DeepSeek-VL2). Quantized checkpoints often omit the vision tower's fields.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.json_text import json_object

GIB = 2**30
TEXT_SECTIONS = ("text_config", "llm_config", "language_config")
# transformers' defaults for the vision tower: depth, width, heads, inner width.
VISION_TOWERS = {
    "qwen2_vl": (32, 1280, 16, 5120),
    "qwen2_5_vl": (32, 1280, 16, 3420),
    "qwen3_vl": (27, 1152, 16, 4304),
    "qwen3_vl_moe": (27, 1152, 16, 4304),
    "internvl_chat": (24, 1024, 16, 4096),
    "glm4v": (24, 1536, 12, 13696),
    "minicpmv": (27, 1152, 16, 4304),
    "kimi_vl": (27, 1152, 16, 4304),
}
QUANTIZED_BITS = {"awq": 4, "awq_marlin": 4, "gptq": 4, "gptq_marlin": 4, "fp8": 8, "bitsandbytes": 4}


@dataclass(frozen=True)
class ModelConfig:
    """The properties of a model that decide its splits and memory."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    vision_heads: int
    vision_intermediate_size: int
    max_model_len: int | None
    quantization: str | None
    group_size: int | None  # of a group-wise quantization
    weight_bytes: int
    kv_bytes_per_token: int  # over all layers and heads, 16-bit


def find_config(model_path: str) -> Path | None:
    """The config.json of a model folder, or of a model in the Hugging Face cache; None if it is not cached."""
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            raise UsageError(f"{folder} has no config.json: set model_path to the folder of a downloaded model")
        return config
    if model_path.startswith(("/", ".", "~")) or model_path.count("/") != 1:
        raise UsageError(f"model folder {model_path} does not exist{_neighbours(folder)}")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = hub / f"models--{model_path.replace('/', '--')}" / "snapshots"
    found = sorted(snapshots.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _neighbours(folder: Path) -> str:
    """What the user may have meant, as the end of a sentence."""
    parent = folder.parent
    if not parent.is_dir():
        return f", nor does {parent}: check the path"
    models = sorted(config.parent.name for config in parent.glob("*/config.json"))
    return f": {parent} has " + (", ".join(models[:8]) if models else "no models")


def read_config(path: Path) -> ModelConfig:
    """Reads config.json and the sizes of the weight files beside it.

    Raises UsageError if it is not a JSON object, ValueError if fields are missing: some models rely on transformers'
    defaults.
    """
    whole = json_object(path.read_bytes())
    if whole is None:
        raise UsageError(f"{path} is not a JSON object: download the model again")
    fields = whole | next((_section(whole, name) for name in TEXT_SECTIONS if _section(whole, name)), {})
    heads = _count(fields, "num_attention_heads")
    kv_heads = _count(fields, "num_key_value_heads", heads)
    head_dim = _count(fields, "head_dim", _count(fields, "hidden_size") // heads)
    quantization = _section(fields, "quantization_config")
    vision = _vision_tower(whole)
    return ModelConfig(
        name=path.parent.name,
        layers=_count(fields, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        intermediate_size=_count(fields, "intermediate_size", 0),
        vocab_size=_count(fields, "vocab_size", 0),
        vision_heads=vision[2],
        vision_intermediate_size=vision[3],
        max_model_len=_count(fields, "max_position_embeddings", 0) or None,
        quantization=str(quantization["quant_method"]) if quantization.get("quant_method") else None,
        group_size=_count(quantization, "group_size", 0) or None,
        weight_bytes=_weight_files_bytes(path.parent) or _estimated_bytes(fields, quantization, vision),
        kv_bytes_per_token=_kv_bytes_per_token(fields, kv_heads, head_dim),
    )


def _section(fields: dict[str, Any], name: str) -> dict[str, Any]:
    section = fields.get(name)
    return section if isinstance(section, dict) else {}


def _count(fields: dict[str, Any], name: str, default: int | None = None) -> int:
    """A positive integer; `default` if it is absent, null, 0 or -1. Raises ValueError."""
    value = fields.get(name)
    if value in (None, 0, -1) and default is not None:
        return default
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r:.40}, not a positive integer")
    return value


def _vision_tower(whole: dict[str, Any]) -> tuple[int, int, int, int]:
    """Depth, width, heads and inner width; zeros for a model without one."""
    depth, width, heads, inner = VISION_TOWERS.get(str(whole.get("model_type", "")), (0, 0, 0, 0))
    vision = _section(whole, "vision_config")
    if not vision:
        return depth, width, heads, inner
    depth = _count(vision, "depth", _count(vision, "num_hidden_layers", depth))
    # Qwen2-VL calls the width embed_dim; its hidden_size is the output width.
    width = _count(vision, "embed_dim", width or _count(vision, "hidden_size", 0))
    heads = _count(vision, "num_heads", _count(vision, "num_attention_heads", heads))
    return depth, width, heads, _count(vision, "intermediate_size", inner or 4 * width)


def _kv_bytes_per_token(fields: dict[str, Any], kv_heads: int, head_dim: int) -> int:
    layers, latent = _count(fields, "num_hidden_layers"), _count(fields, "kv_lora_rank", 0)
    if latent:  # multi-head latent attention caches one vector for all heads
        return layers * (latent + _count(fields, "qk_rope_head_dim", 0)) * 2
    return 2 * layers * kv_heads * head_dim * 2


def _weight_files_bytes(folder: Path) -> int:
    """The size of the checkpoint; 0 if it is not downloaded yet."""
    for pattern in ("model*.safetensors", "*.safetensors", "*.bin", "*.gguf"):
        if sizes := [file.stat().st_size for file in folder.glob(pattern)]:
            return sum(sizes)
    return 0


def _estimated_bytes(fields: dict[str, Any], quantization: dict[str, Any], vision: tuple[int, int, int, int]) -> int:
    """The checkpoint's size from its config: linear layers as quantized, embeddings and vision tower in 16 bits."""
    hidden, heads = _count(fields, "hidden_size"), _count(fields, "num_attention_heads")
    head_dim = _count(fields, "head_dim", hidden // heads)
    attention = 2 * hidden * head_dim * (heads + _count(fields, "num_key_value_heads", heads))
    linear = _count(fields, "num_hidden_layers") * attention + _mlp_parameters(fields, hidden)
    bits = _count(quantization, "bits", QUANTIZED_BITS.get(str(quantization.get("quant_method")), 16))
    group = _count(quantization, "group_size", 0)
    of_groups = (2 + bits / 8) / group if bits < 8 and group else 0  # a scale and a zero point
    embeddings = _count(fields, "vocab_size", 0) * hidden * (1 if fields.get("tie_word_embeddings") else 2)
    depth, width, _, inner = vision
    tower = depth * (4 * width * width + 3 * width * inner) + (4 * width) ** 2 + 4 * width * hidden
    return int(linear * (bits / 8 + of_groups) + 2 * (embeddings + tower))


def _mlp_parameters(fields: dict[str, Any], hidden: int) -> int:
    layers, inner = _count(fields, "num_hidden_layers"), _count(fields, "intermediate_size", 4 * hidden)
    experts = _count(fields, "num_experts", _count(fields, "n_routed_experts", 0))
    if not experts:
        return layers * 3 * hidden * inner
    dense_layers = _count(fields, "first_k_dense_replace", 0)
    inner_of_expert = _count(fields, "moe_intermediate_size", inner)
    each = (experts + _count(fields, "n_shared_experts", 0)) * 3 * hidden * inner_of_expert
    return dense_layers * 3 * hidden * inner + (layers - dense_layers) * each
