"""Whether a text repeats one character or one phrase over and over, as models in a loop write."""

STRIDE, PROBE = 16, 8  # every loop of LEAST letters has a probe in its first STRIDE letters
LONGEST_PHRASE = 400
LEAST = 30  # letters: "very, very, very" is none
REPEATS, LONG_PHRASE, LONG_REPEATS = 5, 30, 3  # nobody writes a sentence three times in a row
FILLERS = frozenset(" \t\n-=_*.·…#~")  # rulers and leaders
MOST_LETTERS = 8000


def repeats_itself(text: str) -> bool:
    """Whether one character or phrase follows itself so often that the text is a loop."""
    text = text[:MOST_LETTERS]
    for at in range(0, len(text) - LEAST + STRIDE, STRIDE):
        again = text.find(text[at : at + PROBE], at + 1, at + LONGEST_PHRASE + PROBE)
        if again > 0 and _is_loop(text, at, again - at):
            return True
    return False


def _is_loop(text: str, at: int, length: int) -> bool:
    """Whether the phrase of this length at `at` is one of many in a row."""
    start, end = at, at + length
    while end < len(text) and text[end] == text[end - length]:
        end += 1
    while start and text[start - 1] == text[start - 1 + length]:
        start -= 1
    repeats = LONG_REPEATS if length >= LONG_PHRASE else REPEATS
    return end - start >= max(LEAST, repeats * length) and not FILLERS.issuperset(text[at : at + length])
