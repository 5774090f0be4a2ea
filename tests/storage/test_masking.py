"""Secrets in texts of others."""

import pytest

from vllm_annotate.storage.masking import masked, names_secret, secrets_in

KEY = "sk-Zq81xPvRw7LmN0tYb3"


@pytest.mark.parametrize("start", range(0, len(KEY), 3))
@pytest.mark.parametrize("length", [6, 7, 11, len(KEY)])
def test_no_piece_of_a_secret_is_shown_however_it_was_cut(start: int, length: int) -> None:
    piece = KEY[start : start + length]
    text = masked(f"wrong key '{piece}' given, {piece}", [KEY])
    assert not [KEY[at : at + 6] for at in range(len(KEY) - 5) if KEY[at : at + 6] in text]
    if len(piece) >= 6:
        assert text == "wrong key '***' given, ***"


def test_several_secrets_are_masked_each() -> None:
    assert masked("hf_abcdefg and sk-123456", ["hf_abcdefg", "sk-123456"]) == "*** and ***"
    assert masked("hf_abcdefgsk-123456", ["hf_abcdefg", "sk-123456"]) == "***"


@pytest.mark.parametrize("secrets", [[], [""], ["1"], ["none"], ["another-one"]])
def test_other_texts_stay_as_they_are(secrets: list[str]) -> None:
    text = "CUDA error 101: none of 1 devices\n\ttraceback 图"
    assert masked(text, secrets) == text
    assert masked("", secrets) == ""


def test_secrets_are_known_by_name_and_passwords_by_their_place_in_a_url() -> None:
    variables = {
        "HF_TOKEN": "hf_1", "AWS_SECRET_ACCESS_KEY": "aws_1", "my_password": "pw_1", "PREFECT_API_AUTH_STRING": "pw_2",
        "HTTPS_PROXY": "http://user:p@ss_3@proxy:3128", "DATABASE": "postgresql+asyncpg://u:pw_4@h/db", "PATH": "/bin",
    }  # fmt: skip
    assert sorted(secrets_in(variables)) == sorted(["hf_1", "aws_1", "pw_1", "pw_2", "p@ss_3", "pw_4"])


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "api_key", "--api-key", "MY_API_KEYS", "PGPASSWORD", "accessToken", "SECRETKEYBASE", "max_secret",
     "PROXY_AUTHORIZATION", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_KEY_PASSPHRASE", "TOKENS", "max_tokens_api_key",
     "TOKENIZER_KEY"],
)  # fmt: skip
def test_a_name_with_the_word_of_a_secret_is_one_of_a_secret(name: str) -> None:
    assert names_secret(name)
    assert secrets_in({name: "value"}) == ["value"]


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "min_visual_tokens", "max_visual_tokens", "--max-num-batched-tokens", "MAX_NEW_TOKENS", "num_tokens",
     "TOKENIZERS_PARALLELISM", "tokenizer_mode", "KEYBOARD_LAYOUT", "keywords", "AUTHOR", "PATH"],
)  # fmt: skip
def test_a_count_of_tokens_or_what_makes_them_is_no_secret(name: str) -> None:
    assert not names_secret(name)
    assert secrets_in({name: "value"}) == []
