"""Words of a text, and how many they are, in any script.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no spaces between words, and to find them takes a dictionary. Their characters
are words of their own here, of which two (Han, kana) or three (the others) are counted as one word. Vowel signs and accents belong
to the character before them, which Python's `\\w` does not know: it splits a word of Hindi at each.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

import regex

_TWO = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_THREE = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_ASCII_WORD = re.compile(r"[^\W_]+")
_ONE = rf"[[{_TWO}{_THREE}]--\p{{M}}]\p{{M}}*"
_CHARACTER = regex.compile(_ONE, regex.V1)
_WORD = regex.compile(rf"{_ONE}|[[\p{{L}}\p{{N}}\p{{M}}]--[{_TWO}{_THREE}]]+", regex.V1)
_OF_TWO = regex.compile(rf"[{_TWO}]")
WHOLE = 6
"""The size of a word in sixths, so that halves and thirds of words add up exactly."""


def words(text: str) -> tuple[str, ...]:
    """The words and numbers of a text; of a script without spaces its characters.

    >>> words("How many? 1,000 -- or x_2!"), words("किताब 5"), words("有5个苹果。")
    (('How', 'many', '1', '000', 'or', 'x', '2'), ('किताब', '5'), ('有', '5', '个', '苹', '果'))
    """
    return tuple((_ASCII_WORD if text.isascii() else _WORD).findall(text))


def size(word: str) -> int:
    """The size of one of `words`, in sixths of a word.

    >>> size("apple"), size("苹"), size("ก")
    (6, 3, 2)
    """
    return WHOLE if word.isascii() else _size(word)


@functools.lru_cache(maxsize=1 << 16)
def _size(word: str) -> int:
    if not _CHARACTER.match(word):
        return WHOLE
    return WHOLE // 2 if _OF_TWO.match(word) else WHOLE // 3


def count_words(text: str) -> int:
    """How many words are in a text, with the signs that stand alone.

    >>> count_words("3 + 4 apples"), count_words("还剩3个苹果。")
    (4, 3)
    """
    if text.isascii() or not _CHARACTER.search(text):
        return len(text.split())
    return sum(map(size, words(text))) // WHOLE


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every n consecutive words; of characters that are part of a word, as many as are n words.

    >>> list(ngrams(("a", "b", "c"), 2)), list(ngrams(words("5个苹果"), 2))
    ([('a', 'b'), ('b', 'c')], [('5', '个', '苹')])
    """
    sizes = [] if "".join(tokens).isascii() else [size(token) for token in tokens]
    if min(sizes, default=WHOLE) == WHOLE:
        yield from (tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        return
    end = total = 0
    for start, first in enumerate(sizes):
        while total < n * WHOLE and end < len(sizes):
            total += sizes[end]
            end += 1
        if total < n * WHOLE:
            return
        yield tuple(tokens[start:end])
        total -= first
