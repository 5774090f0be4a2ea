"""JSON as it was written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_annotate.storage.json_text import dumped, json_object, object_line, raw_members

VALUES = [
    "1", "-0.0", "1.10", "1e400", "-1E-7", "123456789012345678901234567890", "NaN", "-Infinity", "null", "true",
    '""', '"a\\"b\\\\"', '"]}, "', '"\\ud83d"', '"\\u00e9é"', "{}", "[]", "[1,  2]", '{"a": [{"b": "}"}, 1e5]}',
    "[" * 490 + "]" * 490,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_returned_as_written(value: str) -> None:
    row = f'{{"first": 1, "value" :\t{value} ,"last":[]}}\r'
    assert json_object(row) is not None
    assert {name: written for name, (_, written) in raw_members(row).items()} == {
        "first": "1", "value": value, "last": "[]",
    }  # fmt: skip


def test_names_are_found_in_any_spelling_and_returned_as_written() -> None:
    assert raw_members('{"caf\\u00e9": 1, "a\\"b": 2, "\\ud83d": 3}') == {
        "café": ('"caf\\u00e9"', "1"), 'a"b': ('"a\\"b"', "2"), "\ud83d": ('"\\ud83d"', "3"),
    }  # fmt: skip


def test_the_last_of_a_repeated_name_wins_as_in_every_parser() -> None:
    assert raw_members('{"a": 1, "b": 2, "a": [3]}') == {"a": ('"a"', "[3]"), "b": ('"b"', "2")}


@pytest.mark.parametrize("row", ["{}", " { } ", "{\t}"])
def test_an_empty_object_has_no_members(row: str) -> None:
    assert raw_members(row) == {}


def test_a_line_break_in_a_value_does_not_split_the_row() -> None:
    assert raw_members('{"a": [1,\r\n2], "b": "\\n"}') == {"a": ('"a"', "[1,  2]"), "b": ('"b"', '"\\n"')}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_any_object_round_trips_unchanged(row: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(row, ensure_ascii=ascii_only, indent=indent)
    if json_object(text) is None:  # a lone surrogate
        return
    members = [f"{name}:{value}" for name, value in raw_members(text).values()]
    assert repr(json.loads(object_line(*members))) == repr(row)


def test_a_line_is_joined_from_texts_of_members() -> None:
    assert object_line(dumped({"a": 1, "b": "é"}), '"c":NaN', dumped({}), b'"d":[]') == (
        '{"a":1,"b":"é","c":NaN,"d":[]}\n'.encode()
    )
