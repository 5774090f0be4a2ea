"""What another run gets as its parameters."""

from typing import Any

import pytest

from blocks import AnnotationRecipe, VLLMServer
from flows.support.sub_runs import run_parameter
from vllm_annotate.errors import UsageError


def test_a_block_that_is_not_saved_is_passed_by_its_fields() -> None:
    start: Any = {"model_path": "m", "environment": {"NCCL_P2P_DISABLE": "1"}, "environment_from": ["HF_TOKEN"]}
    assert run_parameter(VLLMServer(endpoints=["http://a/v1"], start=start)) == {
        "endpoints": ["http://a/v1"], "start": start,
    }  # fmt: skip
    assert run_parameter(AnnotationRecipe(language="zh")) == {"language": "zh"}
    assert run_parameter(None) is None


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"api_key": "sesame"}, "api_key:"),
        ({"start": {"model_path": "m", "environment": {"HF_TOKEN": "sesame"}}}, "environment HF_TOKEN:"),
    ],
)
def test_secrets_are_not_passed_in_plain_text(fields: Any, names: str) -> None:
    with pytest.raises(UsageError, match=f"would show the server's {names} save the server as a block") as caught:
        run_parameter(VLLMServer(**fields))
    assert "sesame" not in str(caught.value)
