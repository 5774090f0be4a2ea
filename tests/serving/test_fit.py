"""Models on GPUs: what vLLM would refuse, and what works instead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving.conftest import qwen_config
from vllm_annotate.errors import UsageError
from vllm_annotate.serving.fit import Split, need, split_problems, suggestion, what_fits
from vllm_annotate.serving.gpus import Gpu
from vllm_annotate.serving.model_config import GIB, ModelConfig, find_config, read_config

MakeModel = Callable[..., Path]


def model(make_model: MakeModel, size: str) -> ModelConfig:
    return read_config(make_model(qwen_config(size), f"Qwen2.5-VL-{size}") / "config.json")


def cards(count: int, gib: float) -> list[Gpu]:
    return [Gpu(index, "card", int(gib * GIB), int(gib * GIB)) for index in range(count)]


# The memory that these GPUs report.
RTX_3090, L40S, H100 = 23.6, 44.5, 79.2


@pytest.mark.parametrize(
    ("size", "count", "gib", "expected"),
    [
        ("3B", 1, RTX_3090, "1 GPU of 24 GiB use one GPU"),
        ("3B-AWQ", 3, RTX_3090, "3 GPUs of 24 GiB use 3 replicas of one GPU each, TP=2 (with 1 idle card), or PP=3"),
        ("7B", 3, RTX_3090, "3 GPUs of 24 GiB use 3 replicas of one GPU each, TP=2 (with 1 idle card), or PP=3"),
        ("7B-AWQ", 1, RTX_3090, "1 GPU of 24 GiB use one GPU"),
        ("32B", 3, RTX_3090, "3 GPUs of 24 GiB no split fits, as even PP=3 needs 23.8 of 21.2 GiB per GPU"),
        ("32B", 2, L40S, "2 GPUs of 44 GiB use TP=2, or PP=2"),
        ("32B", 1, H100, "1 GPU of 79 GiB use one GPU"),
        ("32B-AWQ", 1, RTX_3090, "1 GPU of 24 GiB no split fits, as even one GPU needs 23.0 of 21.2 GiB per GPU"),
        ("32B-AWQ", 3, RTX_3090, "3 GPUs of 24 GiB use TP=2 (with 1 idle card), or PP=3"),
        ("32B-AWQ", 3, L40S, "3 GPUs of 44 GiB use 3 replicas of one GPU each, TP=2 (with 1 idle card), or PP=3"),
        ("72B", 2, H100, "2 GPUs of 79 GiB no split fits, as even PP=2 needs 71.3 of 71.3 GiB per GPU"),
        ("72B", 8, H100, "8 GPUs of 79 GiB use 2 replicas of 4 GPUs each (TP=4), or 2 replicas of 4 GPUs each (PP=4)"),
        ("72B-AWQ", 1, L40S, "1 GPU of 44 GiB no split fits, as even one GPU needs 44.2 of 40.1 GiB per GPU"),
        ("72B-AWQ", 2, L40S, "2 GPUs of 44 GiB use TP=2, or PP=2"),
        ("72B-AWQ", 1, H100, "1 GPU of 79 GiB use one GPU"),
        ("72B-AWQ", 4, RTX_3090, "4 GPUs of 24 GiB use TP=4, or PP=4"),
    ],
)  # fmt: skip
def test_what_works_for_a_model_on_these_cards(
    make_model: MakeModel, size: str, count: int, gib: float, expected: str
) -> None:
    words = suggestion(model(make_model, size), 8192, cards(count, gib), None)
    assert words.partition(":")[0] == f"on {expected}"


@pytest.mark.parametrize(
    ("size", "gigabytes"),
    [("3B", 7.5), ("3B-AWQ", 3.4), ("7B", 16.6), ("7B-AWQ", 6.9), ("32B-AWQ", 20.7), ("72B", 146.8), ("72B-AWQ", 43.0)],
)
def test_the_estimated_weights_match_the_checkpoints(make_model: MakeModel, size: str, gigabytes: float) -> None:
    assert model(make_model, size).weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)


@pytest.mark.parametrize(
    ("size", "split", "problem"),
    [
        ("32B", Split(3), "TP=3 cannot split 40 heads"),
        ("7B", Split(8), "TP=8 cannot split 28 heads"),
        ("32B", Split(5), "TP=5 cannot split 8 KV heads"),
        ("3B", Split(8), "TP=8 cannot split the vision tower's inner width of 3420"),
        ("7B", Split(7), "TP=7 cannot split 4 KV heads"),
        ("32B", Split(1, 65), "PP=65 exceeds the model's 64 layers"),
    ],
)
def test_a_split_that_vllm_would_refuse_is_refused(
    make_model: MakeModel, size: str, split: Split, problem: str
) -> None:
    assert problem in split_problems(model(make_model, size), split)


def test_the_groups_of_a_quantization_must_divide(make_model: MakeModel) -> None:
    unpadded = qwen_config("72B-AWQ") | {"intermediate_size": 29568}
    awq = read_config(make_model(unpadded, "unpadded") / "config.json")
    assert split_problems(awq, Split(2)) == ["TP=2 cannot split an intermediate size of 29568 into awq groups of 128"]
    assert split_problems(model(make_model, "72B-AWQ"), Split(8)) == []


@pytest.mark.parametrize("size", ["3B", "7B", "32B", "72B", "32B-AWQ", "72B-AWQ"])
@pytest.mark.parametrize("count", range(1, 9))
def test_what_is_suggested_is_allowed_and_fits(make_model: MakeModel, size: str, count: int) -> None:
    config = model(make_model, size)
    for split in what_fits(config, 8192, cards(count, L40S), None):
        assert split.gpus <= count
        assert split_problems(config, split) == []
        assert need(config, split, 8192, cards(count, L40S), None).fits


def test_weight_files_count_as_they_are(make_model: MakeModel) -> None:
    folder = make_model(qwen_config("7B"))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 1000)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"x" * 500)
    (folder / "consolidated.safetensors").write_bytes(b"x" * 1500)
    assert read_config(folder / "config.json").weight_bytes == 1500


def test_text_fields_are_found_in_sections(make_model: MakeModel) -> None:
    text = {
        "num_attention_heads": 64,
        "num_hidden_layers": 64,
        "hidden_size": 5120,
        "head_dim": 128,
        "num_key_value_heads": 8,
    }
    config = read_config(make_model({"model_type": "qwen3_vl", "text_config": text}) / "config.json")
    assert (config.heads, config.vision_heads) == (64, 16)
    assert config.kv_bytes_per_token == 262_144


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", UsageError, "not a JSON object: download"),
        (b"[]", UsageError, "not a JSON object: download"),
        (b"\xff\x00", UsageError, "not a JSON object: download"),
        (b"{}", ValueError, "num_attention_heads is None"),
        (b'{"num_attention_heads": "many"}', ValueError, "num_attention_heads is 'many', not a positive integer"),
        (b'{"num_attention_heads": 0}', ValueError, "num_attention_heads is 0"),
        (
            b'{"num_attention_heads": 4, "num_key_value_heads": [1], "hidden_size": 8}',
            ValueError,
            "num_key_value_heads",
        ),
    ],
)
def test_a_config_with_missing_fields_differs_from_an_invalid_one(
    tmp_path: Path, content: bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=message):
        read_config(tmp_path / "config.json")


def test_a_missing_folder_is_refused_with_its_neighbours(make_model: MakeModel) -> None:
    folder = make_model(qwen_config("7B"), "Qwen2.5-VL-7B")
    with pytest.raises(UsageError, match=r"model folder .*Qwen2.5-VL-8B does not exist: .* has Qwen2.5-VL-7B"):
        find_config(str(folder.with_name("Qwen2.5-VL-8B")))
    with pytest.raises(UsageError, match=r"has no config.json"):
        find_config(str(folder.parent))


def test_a_hugging_face_name_is_looked_up_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert find_config("Qwen/Qwen2.5-VL-7B-Instruct") is None
    snapshot = tmp_path / "models--Qwen--Qwen2.5-VL-7B-Instruct" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert find_config("Qwen/Qwen2.5-VL-7B-Instruct") == snapshot / "config.json"
