"""Names that count as equal."""

import re
from pathlib import Path

import pytest

from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.names import Names


@pytest.mark.parametrize(
    "other", ["CAT", " cat ", "ｃａｔ", "Cat\n"],
)  # fmt: skip
def test_case_width_and_spaces_make_no_difference(other: str) -> None:
    names = Names()
    assert names.number("cat") == names.number(other)


def test_other_names_are_other_names() -> None:
    names = Names()
    assert len({names.number(name) for name in ("cat", "cats", "", "Straße", "猫", "kitchen sink", "kitchensink")}) == 7
    assert names.number("STRASSE") == names.number("Straße")
    assert names.number("kitchen  sink") == names.number("Kitchen Sink")


@pytest.mark.parametrize(
    "text",
    ["- [sofa, Couch, 沙发]\n- [tv, television]\n- []\n", '\ufeff[["sofa", "couch", "沙发"], ["tv", "television"]]'],
)
def test_synonyms_are_read_from_yaml_and_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "synonyms.yaml").write_text(text, encoding="utf-8")
    names = Names(tmp_path / "synonyms.yaml")
    assert names.number("SOFA") == names.number("couch ") == names.number("沙发")
    assert names.number("tv") == names.number("Television") != names.number("sofa")
    assert names.texts[names.number("couch")] == "sofa"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sofa: couch", r"\[\[sofa, couch\]"),
        ("", "write a list of groups"),
        ("- [sofa, couch", "is not YAML"),
        ("- sofa\n- couch", r"\[0\]: .* write a list of groups"),
        ("- [no, nope]", r"\[0\]\[0\]: .* quote names such as yes"),
        ("- [a, b]\n- [B, c]", "has 'B' in two groups: join the groups"),
        ("x" * (2 << 20), "is over 1024 KiB"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_another_synonyms_file_is_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "synonyms.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=rf"--synonyms '{re.escape(str(path))}'.*{message}"):
        Names(path)


def test_a_synonyms_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; correct the path"):
        Names(tmp_path / "none.yaml")
