"""Finds relations that an English text states between named objects.

Reads "the cup is to the left of the plate" and "above the table hangs a lamp". Whatever it does not fully understand
states nothing: a subject must open its clause, only known words may stand between it and the relation, and a sentence
with a negation or a condition is skipped.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

from vllm_annotate.grounding.english_words import (
    AMBIGUOUS,
    DETERMINERS,
    FINITE,
    FOLLOWING,
    FUNCTION_WORDS,
    GLUE,
    HEADS,
    IMAGE_PARTS,
    IMAGES,
    OPENERS,
    PREPOSITIONS,
    RELATIVE,
    SINGLE,
    SLANTS,
    THERE_IS,
    UNCERTAIN,
    UPPER,
    VERBS,
)
from vllm_annotate.grounding.stated import Boxes, Stated

Words = tuple[str, ...]
TOKEN = re.compile(r"[a-z0-9]+(?:['’-][a-z0-9]+)*|[^\sa-z0-9]")
HINT = re.compile(r"(?:left|right|top|bottom)\b[^.]{0,40} of |above|below|under|beneath|inside|contain")
SENTENCES = re.compile(r"[.!?;\n]")
MOST_MODIFIERS = 2
LONGEST_NAME = 5  # words


class _Phrase:
    """A relation at tokens `start` to `end` of a sentence, with its object, or None for the image."""

    def __init__(self, start: int, end: int, relations: Sequence[str], *, of_image: bool) -> None:
        self.start, self.end, self.relations, self.of_image = start, end, relations, of_image


def statements(text: str, boxes: Boxes) -> Iterator[Stated]:
    """Yields what the text states about objects with these names."""
    text = text.lower()
    if HINT.search(text) is None:
        return
    names = {words: name for name in boxes if (words := _words(name))}
    for sentence in SENTENCES.split(text):
        if HINT.search(sentence) is not None:
            tokens: list[str] = TOKEN.findall(sentence)
            if UNCERTAIN.isdisjoint(tokens):
                yield from _in_sentence(tokens, names, text)


@lru_cache(maxsize=4096)
def _words(name: str) -> Words:
    words = tuple(TOKEN.findall(name.lower()))
    return words[1:] if words and words[0] in ("the", "a", "an") else words


def _in_sentence(sentence: list[str], names: dict[Words, str], text: str) -> Iterator[Stated]:
    for at, token in enumerate(sentence):
        phrase = _phrase(sentence, at) if token in HEADS else None
        if phrase is None:
            continue
        read = _direct(sentence, phrase, names) or _inverted(sentence, phrase, names)
        if read is None:
            continue
        subject, other = read
        meant, others = _meant(subject, names), _meant(other, names) if other else None
        if set(meant) & set(others or ()):
            continue
        if token in ("contains", "containing"):
            meant, others = others or [], meant
        yield Stated(meant, phrase.relations, others, partial(_is_ambiguous, subject, other, text))


def _phrase(sentence: list[str], at: int) -> _Phrase | None:
    """The relation whose main word is at `at`."""
    word, after = sentence[at], sentence[at + 1 : at + 4]
    if word in SINGLE:
        return _Phrase(at, at + 1, [SINGLE[word]], of_image=False)
    if word in ("contains", "containing"):
        return _Phrase(at, at + 1, ["inside"], of_image=False)
    if word == "inside":
        return _Phrase(at, at + 1 + (after[:1] == ["of"]), ["inside"], of_image=False)
    if word == "top" and after[:1] == ["of"] and sentence[at - 1 : at] == ["on"]:
        return _Phrase(at - 1, at + 2, ["on top of"], of_image=False)
    return _sides(sentence, at, after)


def _sides(sentence: list[str], at: int, after: list[str]) -> _Phrase | None:
    """`to the upper left of`, `in the left half of the image`, `at the top of the picture`."""
    word, end = sentence[at], at + 1
    relations = [word] if word in ("left", "right") else [UPPER[word]]
    if after[:2] == ["hand", "side"]:
        end, part = at + 3, "side"
    else:
        part = after[0] if after and after[0] in IMAGE_PARTS else ""
        end += bool(part)
    if sentence[end : end + 1] != ["of"]:
        return None
    end += 1
    of_image = _is_image(sentence, end)
    if not of_image and (word not in ("left", "right") or part not in ("", "side")):
        return None
    start = at
    while start and sentence[start - 1] in SLANTS:
        start -= 1
        relations += [UPPER[slant]] if (slant := sentence[start]) in UPPER else []
    start -= start > 0 and sentence[start - 1] == "the"
    start -= start > 0 and sentence[start - 1] in ("to", "on", "at", "in")
    return _Phrase(start, end, relations, of_image=of_image)


def _is_image(sentence: list[str], at: int) -> bool:
    at += at < len(sentence) and sentence[at] in ("the", "this")
    return at < len(sentence) and sentence[at] in IMAGES and (at + 1 == len(sentence) or sentence[at + 1] in FOLLOWING)


def _direct(sentence: list[str], phrase: _Phrase, names: dict[Words, str]) -> tuple[Words, Words | None] | None:
    """`the cup is left of the plate`: subject and object."""
    end, finite = phrase.start, False
    while end and sentence[end - 1] in GLUE:
        finite = finite or sentence[end - 1] in FINITE
        end -= 1
    relative = end > 0 and end < phrase.start and sentence[end - 1] in RELATIVE
    end -= relative
    end -= relative and end > 0 and sentence[end - 1] == ","
    subject = _subject(sentence, end, names, skip=finite and not relative)
    if subject is None:
        return None
    if phrase.of_image:
        return None if ("picture",) in names or ("image",) in names or ("photo",) in names else (subject, None)
    found = _noun(sentence, phrase.end, names)
    return None if found is None else (subject, found[0])


def _inverted(sentence: list[str], phrase: _Phrase, names: dict[Words, str]) -> tuple[Words, Words | None] | None:
    """`above the table hangs a lamp`: subject and object."""
    if phrase.start and sentence[phrase.start - 1] not in (*OPENERS, "and"):
        return None
    if sentence[phrase.start] == "containing":
        return None
    if phrase.of_image:
        end, other = phrase.end + 1 + (sentence[phrase.end] in ("the", "this")), None
    else:
        found = _noun(sentence, phrase.end, names)
        if found is None:
            return None
        other, end = found
    opens = phrase.start == 0 and sentence[end : end + 1] == [","]  # to the right of the tree, a child plays
    end += sentence[end : end + 1] == [","]
    end += sentence[end : end + 1] == ["there"]
    verbs = end
    while end < len(sentence) and sentence[end] in VERBS:
        end += 1
    subject = _noun(sentence, end, names) if end > verbs or opens else None
    return None if subject is None else (subject[0], other)


def _subject(sentence: list[str], end: int, names: dict[Words, str], *, skip: bool) -> Words | None:
    """The name that ends at `end`, if it opens its clause; `skip` may pass over `on the table` in front of a verb."""
    words = _ending(sentence, end, names)
    if words is None:
        return None
    start, has_article = _noun_start(sentence, end - len(words), names)
    if start is None:
        return None
    if start == 0 or sentence[start - 1] in OPENERS or sentence[start - 2 : start] in THERE_IS:
        return words
    if sentence[start - 1] == "and" and start > 1:
        listed = _subject(sentence, start - 1, names, skip=False)
        new_clause = skip and not FINITE.isdisjoint(sentence[: start - 1])
        return words if listed is not None or new_clause or sentence[start - 2] == "," else None
    if skip and has_article and sentence[start - 1] in PREPOSITIONS:
        return _subject(sentence, start - 1, names, skip=False)
    return None


def _noun_start(sentence: list[str], start: int, names: dict[Words, str]) -> tuple[int | None, bool]:
    """Where the noun phrase starts whose name starts at `start`, and whether it has an article."""
    modifiers = 0
    while start and modifiers <= MOST_MODIFIERS and _is_modifier(sentence[start - 1], names):
        start, modifiers = start - 1, modifiers + 1
    if start and sentence[start - 1] in DETERMINERS:
        return start - 1, True
    return (start if not modifiers or not start else None), False


def _is_modifier(word: str, names: dict[Words, str]) -> bool:
    if not word[0].isalnum() or word in FUNCTION_WORDS or word in GLUE or word.endswith("ing"):
        return False
    return (word,) not in names


def _noun(sentence: list[str], at: int, names: dict[Words, str]) -> tuple[Words, int] | None:
    """The name in the noun phrase that starts at `at`, and where it ends."""
    at += at < len(sentence) and sentence[at] in DETERMINERS
    for start in range(at, at + MOST_MODIFIERS + 1):
        words = _starting(sentence, start, names)
        if words is not None:
            end = start + len(words)
            return (words, end) if end >= len(sentence) or sentence[end] in FOLLOWING else None
        if start >= len(sentence) or not _is_modifier(sentence[start], names):
            return None
    return None


def _ending(sentence: list[str], end: int, names: dict[Words, str]) -> Words | None:
    """The longest name that ends at `end`."""
    for start in range(max(0, end - LONGEST_NAME), end):
        if (words := tuple(sentence[start:end])) in names:
            return words
    return None


def _starting(sentence: list[str], start: int, names: dict[Words, str]) -> Words | None:
    """The longest name that starts at `start`."""
    for end in range(min(len(sentence), start + LONGEST_NAME), start, -1):
        if (words := tuple(sentence[start:end])) in names:
            return words
    return None


def _meant(words: Words, names: dict[Words, str]) -> list[str]:
    """All names that the words may stand for: "cup" also for "red cup"."""
    return [name for full, name in names.items() if full[-len(words) :] == words]


def _is_ambiguous(subject: Words, other: Words | None, text: str) -> bool:
    """Whether the text speaks of several things by one of the names, of which only one may have a box."""
    tokens = TOKEN.findall(text)
    return any(_is_shared(words, tokens) for words in (subject, other) if words)


def _is_shared(words: Words, text: list[str]) -> bool:
    plural = (*words[:-1], f"{words[-1]}s")
    before = set()
    for at in range(len(text)):
        found = tuple(text[at : at + len(words)])
        if found == plural:
            return True
        if found == words and at:
            word = text[at - 1]
            if word in AMBIGUOUS:
                return True
            if word[0].isalnum() and word not in FUNCTION_WORDS:
                before.add(word)
    return len(before) > 1
