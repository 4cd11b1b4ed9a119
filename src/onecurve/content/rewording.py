"""Changes to a training text: words exchanged, left out, or replaced by synonyms; drawn first, then applied.

Everything is drawn from the generator that is given. Source: Wei & Zou, EDA: easy data augmentation techniques for
boosting performance on text classification tasks, EMNLP 2019. There a share of a text's words, at least one, is changed
and the copies are added to the data; here each word is changed with a probability, anew in every pass.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onecurve.content.words import UNSPACED

if TYPE_CHECKING:
    from numpy.random import Generator

TEXTS = "texts of the row"
"""Key of an example: the columns whose texts are changed in training, as JSON; there where the recipe changes some."""
UNCHANGED = "unchanged"
"""Key of an example whose texts were changed: itself as it was."""
Synonyms = Mapping[str, Sequence[str]]
"""Word, in lower case -> what may stand for it."""
_WORD = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})\S)+")
_INNER = re.compile(r"\w(?:.*\w)?", re.DOTALL)


@dataclass(frozen=True)
class Words:
    """A text in its words: what white space separates, and each letter of scripts that have none between words."""

    words: list[str]
    before: str
    """White space before the first."""
    gaps: list[str]
    """White space behind each."""

    @classmethod
    def of(cls, text: str) -> "Words":
        """Split a text."""
        spans = [found.span() for found in _WORD.finditer(text)]
        ends = [*(start for start, _ in spans[1:]), len(text)][: len(spans)]
        gaps = [text[stop:end] for (_, stop), end in zip(spans, ends, strict=True)]
        return cls([text[start:stop] for start, stop in spans], text[: spans[0][0]] if spans else text, gaps)


@dataclass
class Draft:
    """What was drawn for a text."""

    source: Words
    order: list[int]
    """Which word stands at each place; None were left out of it."""
    kept: list[bool]
    """Whether a place keeps its word."""
    replaced: dict[int, str] = field(default_factory=dict)
    """Word -> its synonym, in the order of the text."""

    def undo(self) -> bool:
        """Take the last synonym back; whether there was one."""
        return bool(self.replaced) and bool(self.replaced.popitem())

    @property
    def text(self) -> str:
        """The changed text."""
        source = self.source
        there = [place for place, is_kept in enumerate(self.kept) if is_kept]
        words = [self.replaced.get(self.order[place], source.words[self.order[place]]) for place in there]
        gaps = [source.gaps[place] for place in there]
        if there:
            gaps[-1] = source.gaps[-1]
        return source.before + "".join(word + gap for word, gap in zip(words, gaps, strict=True))


def draw(text: str, rng: "Generator", swap: float, deletion: float, synonyms: Synonyms, synonym_share: float) -> Draft:
    """Draw changes to a text.

    Args:
        text: The text.
        rng: Drawn from.
        swap: The probability that a word is exchanged with another, anywhere in the text.
        deletion: The probability that a word is left out; a text keeps one word at least.
        synonyms: What may stand for words.
        synonym_share: The probability that a word that has synonyms is replaced by one of them.
    """
    source = Words.of(text)
    count = len(source.words)
    order, kept = [*range(count)], [True] * count
    replaced: dict[int, str] = {}
    for place, is_replaced in enumerate(rng.random(count) < synonym_share):
        others = synonyms.get(_inner(source.words[place]).casefold(), ()) if is_replaced else ()
        if others:
            replaced[place] = _put(source.words[place], others[int(rng.integers(len(others)))])
    for place, is_swapped in enumerate(rng.random(count) < swap):
        if is_swapped and count > 1:
            other = (place + 1 + int(rng.integers(count - 1))) % count
            order[place], order[other] = order[other], order[place]
    if count:
        kept = (rng.random(count) >= deletion).tolist()
        if not any(kept):
            kept[int(rng.integers(count))] = True
    return Draft(source, order, kept, replaced)


def _inner(word: str) -> str:
    """Return a word without punctuation around it."""
    found = _INNER.search(word)
    return found[0] if found else word


def _put(word: str, synonym: str) -> str:
    """Return a synonym in the place of a word, with its capital and the punctuation around it."""
    inner = _inner(word)
    if inner[:1].isupper():
        synonym = synonym[:1].upper() + synonym[1:]
    before, _, behind = word.partition(inner)
    return before + synonym + behind
