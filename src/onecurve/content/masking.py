"""Which tokens of a text are hidden from a model that learns to fill them in, and what it reads in their place."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator

NO_WORD = -1
"""In place of a word's number: a token that is never hidden, such as a special one."""


def num_hidden(words: list[int], probability: float) -> int:
    """Return how many tokens of a text are hidden: their share of those that may be, one at least, none of none."""
    count = sum(word != NO_WORD for word in words)
    return max(1, round(probability * count)) if count else 0


def choose(words: np.ndarray, count: int, rng: "Generator") -> np.ndarray:
    """Choose exactly so many tokens: whole words in random order, each that still fits, then a part of one word.

    The order and the fitting are those of Google's BERT (create_masked_lm_predictions). That one leaves out what does
    not fit, so that how much is learnt from a text depends on chance; here the first word that did not fit gives the
    few tokens that are missing.

    Args:
        words: int [tokens]: the number of each token's word, ascending, or NO_WORD.
        count: How many; at most as many as have a word.
        rng: What is drawn from.

    Returns:
        int64 [count]: positions, ascending.
    """
    places = np.flatnonzero(words != NO_WORD)
    _, starts = np.unique(words[places], return_index=True)
    members = np.split(places, starts[1:])
    chosen: list[np.ndarray] = []
    too_long: np.ndarray | None = None
    for number in rng.permutation(len(members)):
        if not count:
            break
        word = members[number]
        if len(word) <= count:
            chosen.append(word)
            count -= len(word)
        elif too_long is None:
            too_long = word
    if count:
        assert too_long is not None, "more tokens are to be hidden than there are"
        chosen.append(rng.choice(too_long, count, replace=False))
    return np.sort(np.concatenate(chosen))


def hide(
    ids: np.ndarray, mask_id: int, others: np.ndarray, shares: tuple[float, float], rng: "Generator"
) -> np.ndarray:
    """Return what is read in place of tokens: for each the mask, or another token, or the token itself.

    Source: Devlin et al., BERT, 2019, section 3.1, where the shares are 0.8, 0.1 and the rest.

    Args:
        ids: int [tokens].
        mask_id: The mask.
        others: int [vocabulary]: what another token is drawn from.
        shares: Of the mask, and of another token.
        rng: What is drawn from.
    """
    masked, random = shares
    fate, drawn = rng.random(len(ids)), rng.choice(others, len(ids))
    return np.where(fate < masked, mask_id, np.where(fate < masked + random, drawn, ids))
