"""Files that were damaged at random: refused in words, or read."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.scenes import write_scenes
from vllm_annotate.errors import UsageError
from vllm_annotate.evaluation.compare import compare
from vllm_annotate.evaluation.comparison_page import comparison_page
from vllm_annotate.evaluation.evaluate import evaluate
from vllm_annotate.evaluation.page import evaluation_page

TOKENS = [
    b"null", b"-1", b"(\xb5/\xfd", b"1e999", b"NaN", b"[]", b"{}", b'"x"', b"true", b'"\\ud800"',
    b"\xff", b"\x00", b"\n", b"]", b"}", b",",
]  # fmt: skip
FILES = ("truth.json", "truth.jsonl", "labeled.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("hostile")
    write_scenes(where, 4)
    for name in FILES:
        (where / f"sound {name}").write_bytes((where / name).read_bytes())
    return where


def damaged(content: bytes, at: float, length: int, token: bytes) -> bytes:
    """The content with some bytes replaced by a token."""
    start = int(at * len(content))
    return content[:start] + token + content[start + length :]


@settings(max_examples=settings().max_examples // 10)  # each reads, compares and draws two files
@given(
    name=st.sampled_from(FILES),
    at=st.floats(0, 1),
    length=st.sampled_from([0, 1, 2, 5, 40, 1_000_000]),
    token=st.one_of(st.sampled_from(TOKENS), st.binary(max_size=3)),
    packed=st.sampled_from([False, False, False, True]),
)
def test_a_damaged_file_is_refused_in_words_or_read(
    folder: Path, name: str, at: float, length: int, token: bytes, packed: bool
) -> None:
    sound = (folder / f"sound {name}").read_bytes()
    (folder / name).write_bytes(damaged(gzip.compress(sound) if packed else sound, at, length, token))
    output = folder / "labeled.jsonl"
    said = ""
    try:
        for truth in ("truth.json", "truth.jsonl"):
            found = evaluate(output, folder / truth)
            json.dumps(found.figures, allow_nan=False)
            evaluation_page(found.figures, found.worst, None)
            between = compare(output, folder / "sound labeled.jsonl", folder / truth)
            json.dumps(between.figures, allow_nan=False)
            comparison_page(between.figures, between.most_different, None)
    except UsageError as error:
        said = str(error)
    finally:
        (folder / name).write_bytes(sound)
    assert len(said) < 900
