"""Which tokens of a text belong to one word, for every kind of tokenizer."""

import re
from collections.abc import Sequence
from typing import Any

from onecurve.errors import ConfigError

UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_UNSPACED = re.compile(UNSPACED)
_STARTS, _CONTINUES, _ENDS, _GOES_ON = ("▁", "Ġ"), ("##",), ("</w>",), ("@@",)
"""Marks of vocabularies: before a token that starts a word, before one that continues it; after one that ends a word,
after one that does not."""


def number_words(tokenizer: Any, text: str, encoding: Any) -> list[int]:
    """Return the number of each token's word, from 0 in the order of the text.

    A word is what the tokenizer splits a text into before it looks for tokens, and never contains white space. Of a
    script without spaces each token is a word.

    Args:
        tokenizer: Of transformers.
        text: What it has read.
        encoding: What it returned; a fast tokenizer's with `offset_mapping`. Special tokens that it added get numbers
            too.

    Raises:
        ConfigError: A slow tokenizer, whose vocabulary does not mark where words start.
    """
    if tokenizer.is_fast:
        return _by_spans(text, encoding["offset_mapping"], encoding.word_ids())
    return _by_marks(tokenizer.convert_ids_to_tokens(encoding["input_ids"]), tokenizer.get_vocab())


def _by_spans(text: str, spans: Sequence[tuple[int, int]], pieces: Sequence[int | None]) -> list[int]:
    """Number words by where tokens stand in the text.

    Args:
        text: The text.
        spans: Start and end of each token in characters; some tokenizers count the space before a word as part of it.
        pieces: Of the tokenizer's own splitting, the number of the piece that each token is part of. Not all split at
            white space.
    """
    numbers: list[int] = []
    word, before, end = -1, object(), 0
    for (left, right), piece in zip(spans, pieces, strict=True):
        first = left
        while first < right and text[first].isspace():
            first += 1
        spaced = any(map(str.isspace, text[end:first]))
        # A character of several tokens, as in byte-level vocabularies, is not split
        alone = left >= end and bool(_UNSPACED.match(text[first : first + 1]) or _UNSPACED.match(text[end - 1 : end]))
        if piece != before or spaced or alone or not numbers:
            word += 1
        numbers.append(word)
        before, end = piece, max(end, right)
    return numbers


def _by_marks(tokens: Sequence[str], vocabulary: Sequence[str]) -> list[int]:
    marks = {mark: sum(mark in token for token in vocabulary) for mark in (*_STARTS, *_CONTINUES, *_ENDS, *_GOES_ON)}
    mark = max(marks, key=marks.__getitem__)  # any of them may be plain text in another's vocabulary
    if not marks[mark]:
        raise ConfigError(
            "the tokenizer tells neither where its tokens stand in a text nor, by marks such as ## or ▁, which of them "
            "start a word.",
            where="task.whole_word",
            fix="Set it to false.",
        )
    starts = {
        **dict.fromkeys(_STARTS, lambda token, _: token.startswith(mark)),
        **dict.fromkeys(_CONTINUES, lambda token, _: not token.startswith(mark)),
        **dict.fromkeys(_ENDS, lambda _, before: before.endswith(mark)),
        **dict.fromkeys(_GOES_ON, lambda _, before: not before.endswith(mark)),
    }[mark]
    numbers: list[int] = []
    for place, token in enumerate(tokens):
        word = numbers[-1] if numbers else -1
        numbers.append(word + (not numbers or starts(token, tokens[place - 1])))
    return numbers
