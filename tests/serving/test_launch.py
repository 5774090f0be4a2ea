"""How vLLM is started: what is refused, and what is secret."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from vllm_annotate.serving.launch import Launch
from vllm_annotate.serving.settings import Server

MARK = "hf_Zq81xPvRw7"


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Server(start={"model_path": "m"} | fields)
    assert MARK not in str(caught.value), "Prefect logs the whole text"
    assert MARK[:6] not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SEED": 1}, "SEED is of type int, and must be text: write its value in quotes"),
        ({"FAST": True}, "FAST is of type bool, and must be text: write its value in quotes"),
        ({"HF_TOKEN": None}, "HF_TOKEN is empty, and must be text: write its value in quotes"),
        ({"HF_TOKEN": [MARK]}, "HF_TOKEN is of type list, and must be text: write its value in quotes"),
        ({"HF_TOKEN": {"a": MARK}}, "HF_TOKEN is of type dict, and must be text: write its value in quotes"),
        ([f"HF_TOKEN={MARK}"], 'it is of type list, and must be a mapping: write NAME: "value"'),
        (f"HF_TOKEN={MARK}", 'it is of type str, and must be a mapping: write NAME: "value"'),
        (None, 'it is empty, and must be a mapping: write NAME: "value"'),
        ({f"HF_TOKEN={MARK}": ""}, "'HF_TOKEN' is not the name of an environment variable (letters, digits and _"),
        ({"": MARK}, "'' is not the name of an environment variable"),
        ({1: MARK}, "'1' is not the name of an environment variable"),
        ({"HF TOKEN": MARK}, "'HF TOKEN' is not the name of an environment variable"),
        ({"HF_TOKEN": f"{MARK}\0"}, "the value of HF_TOKEN contains NUL or a lone surrogate"),
        ({"HF_TOKEN": f"{MARK}\ud800"}, "the value of HF_TOKEN contains NUL or a lone surrogate"),
    ],
)
def test_what_no_environment_can_have_is_refused_without_its_value(environment: Any, message: str) -> None:
    assert message in refusal(environment=environment)


@pytest.mark.parametrize("names", [[f"HF_TOKEN={MARK}"], [""], ["A B"], ["HF_TOKEN\0"]])
def test_what_is_no_name_of_a_variable_is_refused(names: list[str]) -> None:
    assert "is not the name of an environment variable" in refusal(environment_from=names)


def test_a_variable_comes_from_one_place() -> None:
    message = refusal(environment={"HF_TOKEN": MARK}, environment_from=["HF_TOKEN", "OTHER"])
    assert "HF_TOKEN stands in both environment and environment_from: remove it from one of them" in message


@pytest.mark.parametrize("value", [f"--hf-token={MARK}", f"--hf_token={MARK}", "--hf-token"])
def test_a_token_among_the_arguments_is_refused_as_ps_would_show_it(value: str) -> None:
    arguments = [value] if "=" in value else [value, MARK]
    assert "environment_from" in refusal(extra_arguments=arguments)


def test_the_token_that_is_stored_on_the_machine_may_be_asked_for() -> None:
    arguments = ["--hf-token", "--seed=1"]
    assert Launch(model_path="m", extra_arguments=arguments).extra_arguments == arguments


def test_no_text_of_a_server_shows_the_values_of_its_variables() -> None:
    environment = {"HF_TOKEN": MARK, "ODD": f"x{MARK}"}
    server = Server(api_key=MARK, start={"model_path": "m", "environment": environment})
    texts = [repr(server), str(server), server.model_dump_json(), json.dumps(server.without_secrets())]
    assert not [text for text in texts if MARK in text]
    assert server.start is not None
    assert server.start.variables == environment
    assert server.secrets() == ["api_key", "environment HF_TOKEN", "environment ODD"]


def test_the_json_of_a_server_is_read_again_unless_it_hides_values() -> None:
    plain, secret = Launch(model_path="m"), Launch(model_path="m", environment={"A": "b"})
    assert Launch(**plain.model_dump(mode="json")) == plain
    with pytest.raises(ValidationError, match="must be a mapping"):
        Launch(**secret.model_dump(mode="json"))


def test_switches_and_numbers_are_not_secret_unless_their_name_says_so() -> None:
    start = Launch(model_path="m", environment={"NCCL_P2P_DISABLE": "1", "VLLM_LOGGING_LEVEL": "DEBUG", "MY_KEY": "1"})
    assert start.without_secrets() == {
        "model_path": "m",
        "environment": {"NCCL_P2P_DISABLE": "1", "VLLM_LOGGING_LEVEL": "DEBUG"},
        "environment_from": ["MY_KEY"],
    }
