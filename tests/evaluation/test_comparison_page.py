"""What the page of a comparison calls the two outputs."""

import pytest

from vllm_annotate.evaluation.comparison_page import names_of


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("/data/careful.jsonl", "/data/quick.jsonl", ("careful.jsonl", "quick.jsonl")),
        ("/data/7b/labeled.jsonl", "/data/32b/labeled.jsonl", ("7b/labeled.jsonl", "32b/labeled.jsonl")),
        ("/a/x/labeled.jsonl", "/b/x/labeled.jsonl", ("a/x/labeled.jsonl", "b/x/labeled.jsonl")),
        ("labeled.jsonl", "/data/labeled.jsonl", ("labeled.jsonl", "data/labeled.jsonl")),
        ("/data/labeled.jsonl", "/data/labeled.jsonl", ("/data/labeled.jsonl", "/data/labeled.jsonl")),
        ("/labeled.jsonl", "labeled.jsonl", ("/labeled.jsonl", "labeled.jsonl")),
    ],
)
def test_outputs_have_as_many_folders_in_their_names_as_it_takes_to_tell_them_apart(
    one: str, other: str, names: tuple[str, str]
) -> None:
    assert names_of(one, other) == names
