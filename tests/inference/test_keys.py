"""Keys in what servers say."""

import pytest

from vllm_annotate.inference.keys import MASK, PIECE, Mask

KEY = 'sk-Fq7"Lm/92xWz%aB3'


@pytest.mark.parametrize("echo", [KEY, 'sk-Fq7\\"Lm/92xWz%aB3', 'sk-Fq7\\"Lm\\/92xWz%aB3', "sk-Fq7%22Lm%2F92xWz%25aB3"])
def test_a_key_is_hidden_however_it_is_written(echo: str) -> None:
    assert Mask(KEY).text(f"Authorization: Bearer {echo}; bye") == f"Authorization: Bearer {MASK}; bye"


@pytest.mark.parametrize("begin", range(len(KEY) - PIECE))
@pytest.mark.parametrize("end", [PIECE, PIECE + 1, len(KEY)])
def test_a_part_of_a_key_is_hidden_wherever_it_was_cut(begin: int, end: int) -> None:
    part = KEY[begin : begin + end]
    assert part not in Mask(KEY).text(f"token {part}")


def test_a_key_across_the_place_where_a_message_is_cut_is_hidden() -> None:
    for before in range(440, 500):
        line = Mask(KEY).line("." * before + KEY)
        assert not any(KEY[at : at + PIECE] in line for at in range(len(KEY)))


def test_without_a_key_nothing_is_hidden_and_text_is_bounded() -> None:
    assert Mask("", "none").line("none  of\nthese") == "none of these"
    assert len(Mask().text(b"a" * 10_000_000)) == 20_000
