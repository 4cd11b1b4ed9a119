"""ROUGE of generated texts, in any script: n-grams and longest common subsequences shared with a reference."""

from collections import Counter
from collections.abc import Sequence

import regex

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_WITHOUT_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = regex.compile(rf"[{_WITHOUT_SPACES}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_WITHOUT_SPACES}]]+", regex.V1)


def tokens(text: str) -> list[str]:
    """Return a text's words in lower case; of scripts that put no spaces between words, its characters.

    Punctuation is left out, nothing is stemmed.
    """
    return _TOKEN.findall(text.lower())


def score_rouge(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the mean F1 over (text, reference) of each score, from 0 to 1.

    rouge1 and rouge2 count the n-grams that a text shares with its reference, rougeL the longest common subsequence of
    their words. rougeLsum takes lines as sentences: of each line of the reference, the union of its longest common
    subsequences with every line of the text.

    Source:
        Lin, ROUGE: a package for automatic evaluation of summaries, 2004, sections 2, 3.1 and 3.2, precision and
        recall weighted alike.
    """
    scores = [_of_pair(*pair) for pair in pairs]
    return {name: sum(column) / len(pairs) for name, column in zip(NAMES, zip(*scores, strict=True), strict=True)}


def _of_pair(text: str, reference: str) -> tuple[float, float, float, float]:
    ours, theirs = tokens(text), tokens(reference)
    longest = len(_common(theirs, ours))
    lines = [[found for line in of.splitlines() if (found := tokens(line))] for of in (text, reference)]
    return (
        _shared(ours, theirs, 1),
        _shared(ours, theirs, 2),
        _f1(longest, len(ours), len(theirs)),
        _f1(_union(*lines), len(ours), len(theirs)),
    )


def _shared(ours: list[str], theirs: list[str], size: int) -> float:
    one, other = (Counter(zip(*(of[start:] for start in range(size)), strict=False)) for of in (ours, theirs))
    return _f1((one & other).total(), one.total(), other.total())


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0


def _union(ours: list[list[str]], theirs: list[list[str]]) -> int:
    """Return how many words of the reference's lines some line of the text shares, none more often than both have it.

    That limit, which Lin's formula lacks and without which precision may exceed 1, is rouge-score's.
    """
    left, there = (Counter(word for line in lines for word in line) for lines in (ours, theirs))
    hits = 0
    for line in theirs:
        places: set[int] = set().union(*(_common(line, other) for other in ours))
        for word in (line[place] for place in sorted(places)):
            if left[word] > 0 and there[word] > 0:
                hits += 1
                left[word] -= 1
                there[word] -= 1
    return hits


def _common(reference: list[str], text: list[str]) -> list[int]:
    """Return the places in `reference` of a longest common subsequence, last first.

    A column of the usual table is the bits of one number, zero where the length grows: a text of a thousand words takes
    a thousand additions. Source: Hyyrö, Bit-parallel LCS-length computation revisited, 2004.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << place
    all_bits = (1 << len(reference)) - 1
    columns = [all_bits]
    for word in text:
        met = columns[-1] & places.get(word, 0)
        columns.append(((columns[-1] + met) | (columns[-1] - met)) & all_bits)
    found, row, column = [], len(reference), len(text)
    while row and column:
        if reference[row - 1] == text[column - 1]:
            row, column = row - 1, column - 1
            found.append(row)
        elif columns[column] >> (row - 1) & 1:  # as long without this word of the reference
            row -= 1
        else:
            column -= 1
    return found
