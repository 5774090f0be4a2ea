"""Settings from YAML files."""

import time
from pathlib import Path

import pytest

from vllm_annotate.errors import UsageError
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.storage.yaml_fields import MOST_BYTES, read_fields

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(path: Path) -> str:
    began = time.process_time()
    with pytest.raises(UsageError) as refused:
        read_fields(path, "recipe", Recipe)
    assert time.process_time() - began < 3
    said = str(refused.value)
    assert said.startswith(f"recipe {str(path)!r}")
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LAUGHS.encode(), "line 2, column 8: alias *a is not allowed: write the value out"),
        (b"prompt: &a [*a]\n", "alias *a is not allowed"),
        (b"[" * 100_000, "nested over 50 levels deep"),
        (b"{a: " * 1000 + b"}" * 1000, "nested over 50 levels deep"),
        (b"".join(b" " * depth + b"a:\n" for depth in range(300)), "nested over 50 levels deep"),
        (b"# " + b"x" * MOST_BYTES, "is over 256 KiB: name the file with any of these fields: "),
        (b"temperature: !!int x", "has a value that YAML cannot read (ValueError): quote it"),
        (b"temperature: !!bool x", "has a value that YAML cannot read (KeyError): quote it"),
        (b"temperature: !!timestamp x", "has a value that YAML cannot read (AttributeError): quote it"),
        (b"temperature: 2020-13-45", "has a value that YAML cannot read (ValueError): quote it"),
        (b"temperature: " + b"9" * 5000, "has a value that YAML cannot read (ValueError): quote it"),
        (b"temperature: !!python/object/apply:os.getcwd []", "is not YAML: line 1, column 14: could not determine"),
        (b"temperature: 1\na: {b: 1}\ntemperature: 0", "line 3, column 1: temperature stands twice: keep one"),
        (b"\xff\xfea\0", "byte 0 is not UTF-8; save it as UTF-8"),
        (b"a: \0", "is not YAML: "), (b"- a", "must be a mapping"), (b"", "must be a mapping"),
        (b"a: 1\n---\nb: 2\n", "is not YAML: line 2, column 1: but found another document"),
    ],
)  # fmt: skip
def test_what_is_no_set_of_fields_is_refused_at_once(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    assert said in refusal(tmp_path / "recipe.yaml")


def test_a_broken_line_is_not_shown_as_it_may_hold_a_key(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("endpoints: []\napi_key: 'sk-secret\n")
    assert "sk-secret" not in refusal(tmp_path / "server.yaml")


def test_what_cannot_be_read_or_never_ends_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "none.yaml")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    assert "cannot be read: embedded null byte" in refusal(Path("a\0b"))
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    assert "is over 256 KiB" in refusal(tmp_path / "endless.yaml")


def test_fields_are_read_also_after_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("temperature: 0.5\n", encoding="utf-8-sig")
    assert read_fields(tmp_path / "recipe.yaml", "recipe", Recipe) == {"temperature": 0.5}
