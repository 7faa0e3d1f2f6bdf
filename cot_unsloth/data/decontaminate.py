"""Training rows that overlap with the test set.

A model that was trained on a test question scores too well on it. An overlap is an equal question (an earlier one of a
conversation, too), or 13 consecutive words of a test question anywhere in a row (T. Brown and others, 2020, appendix C; two
characters of Chinese or Japanese, or three of Thai, count as one word); 8 consecutive words are only counted, since they also
coincide by chance. Rows of one file often share phrases, so 13 words drop a row only if the test set is a benchmark, not if it
is held out from the same file.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cot_unsloth.core import results
from cot_unsloth.core.types import Example, Reject
from cot_unsloth.core.words import ngrams, words
from cot_unsloth.storage.stored_rows import StoredRows, rows_without

_SIGN = re.compile(r"""\d+(?:\.\d+)*|\w+|[^\w\s.?。？$"“”„«»…{}\\]""")
_SPELLINGS = str.maketrans(
    {
        **dict.fromkeys("‘’ʼ′`´", "'"),
        **dict.fromkeys("‐‑–—−", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"),
        **{chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)},
    }
)
"""Signs that copies of a data set spell in several ways, such as typographic apostrophes, dashes and minus signs; invisible and
full-width characters."""
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_LATEX = re.compile(r"\\(?:left|right|displaystyle|text|mathrm|mathbf|textbf)(?![a-z])|\\[()\[\],;!]")
_LATEX_NAMES = re.compile(r"\\(?:[dtc](frac)|([lgn]e)q)(?![a-z])")
_OPTION = re.compile(r"^\([A-Z]\) (.*)$", re.MULTILINE)
LONG, SHORT = 13, 8
EXACT, BY_LONG, BY_SHORT = 1, 2, 4
"""Kinds of overlap: an equal question, LONG words, SHORT words."""


@dataclass(frozen=True)
class Overlap:
    """The training rows that overlap with the test set."""

    kinds: bytes
    """For each training row the sum of the kinds of its overlaps: `EXACT`, `BY_LONG`, `BY_SHORT`."""

    def of(self, kinds: int) -> array[int]:
        """The positions of the rows with an overlap of one of these kinds, ascending."""
        return array("Q", (at for at, found in enumerate(self.kinds) if found & kinds))

    def dropped(self, *, ngrams: bool) -> array[int]:
        """Positions of the rows not to train on, ascending; with `ngrams`, also those that share 13 consecutive words."""
        return self.of(EXACT | BY_LONG if ngrams else EXACT)

    def counts(self, dropped: int) -> results.Contamination:
        """Counts for `scorecard.json`; `dropped` is how many rows were left out of training."""
        return results.Contamination(
            training_rows=len(self.kinds),
            exact=len(self.of(EXACT)),
            ngram_13=len(self.of(BY_LONG)),
            ngram_8=len(self.of(BY_SHORT)),
            dropped=dropped,
        )


def folded_words(text: str) -> tuple[str, ...]:
    """The words and numbers of a text, in lower case.

    >>> folded_words("How many? 1,000 -- or x_2!")
    ('how', 'many', '1', '000', 'or', 'x', '2')
    """
    return words(unicodedata.normalize("NFC", text.casefold()))


def _normalized(question: str) -> str:
    """A question without differences of case, spacing, markup and closing punctuation. Signs are kept: 3 + 4 is not 3 - 4.

    >>> _normalized("What is $60^{\\\\circ} + 0.5$?") == _normalized("what is 60^\\\\circ+0.5"), _normalized("5!") == _normalized("5")
    (True, False)
    """
    text = (_with_sorted_options(question) if "\n(B) " in question else question).casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_SPELLINGS)
    if "\\" in text:
        text = _LATEX_NAMES.sub(lambda name: name[1] or name[2], _LATEX.sub(" ", text))
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    return " ".join(_SIGN.findall(text) or text.split())


def _with_sorted_options(question: str) -> str:
    """A multiple-choice question with its options in alphabetical order and without letters: shuffled, it is the same question."""
    options = _OPTION.findall(question)
    return "\n".join([_OPTION.sub("", question), *sorted(options)])


def _conversations(example: Example) -> Iterator[str]:
    """What a row asks: each question of its conversation by itself, and with the turns before it."""
    contents = [_normalized(text) for text in (*(turn["content"] for turn in example.history), example.question)]
    for at, content in enumerate(contents):
        if at == len(example.history) or example.history[at]["role"] == "user":
            yield content
            if at:
                yield "\n".join(contents[: at + 1])


def find_overlap(train: Sequence[Example], test: Sequence[Example]) -> Overlap:
    """The training rows whose question, earlier turns or solution overlap with a test question.

    Questions with earlier turns are equal if these are: "And doubled?" is another question after another conversation.
    """
    questions = [folded_words(example.question) for example in test]
    equal = {list(_conversations(example))[-1] for example in test}
    # The n-grams of the test set are in memory, and training rows are streamed past them: the test set is the small
    # one.
    long, short = ({gram for question in questions for gram in ngrams(question, n)} for n in (LONG, SHORT))
    kinds = bytearray()
    for example in train:
        texts = [example.question, *(turn["content"] for turn in example.history)]
        # The solution as well as the question: traces often restate the problem in full.
        row_words = folded_words(
            "\n".join([*texts, *(part.text for part in example.trace.parts), example.trace.output])
        )
        kinds.append(
            EXACT * (not equal.isdisjoint(_conversations(example)))
            + BY_LONG * (not long.isdisjoint(ngrams(row_words, LONG)))
            + BY_SHORT * (not short.isdisjoint(ngrams(row_words, SHORT)))
        )
    return Overlap(bytes(kinds))


def remove_overlap(
    train: Sequence[Example], overlap: Overlap, *, ngrams: bool
) -> tuple[Sequence[Example], Sequence[Reject]]:
    """The training rows to keep, and the rejects; see `Overlap.dropped`."""
    dropped = overlap.dropped(ngrams=ngrams)
    rejects = StoredRows[Reject]()
    for index in dropped:
        exact = overlap.kinds[index] & EXACT
        detail = (
            "its question is one of the test set"
            if exact
            else f"it shares {LONG} words in a row with a question of the test set"
        )
        rejects.append(Reject(train[index].where, "contaminated", detail, train[index].question[:2000]))
    return rows_without(train, dropped), rejects
