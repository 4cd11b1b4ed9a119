"""Planted bugs in what changes texts: each, drawn or applied wrongly, fails the check that it passes."""

from typing import Any

import numpy as np
import pytest

from onecurve.content import rewording
from onecurve.data import collation
from onecurve.regularization.text_augmentation import TextAugmentation
from onecurve.seeds import stream_key
from tests.content import test_rewording as texts
from tests.regularization import test_text_augmentation as augmented
from tests.regularization.test_planted import must_fail

loaded, words, keys = augmented.loaded, augmented.words, augmented.keys  # fixtures


def _takes_a_copy_and_exchanges_nothing(right):
    def draw(*arguments):
        draft = right(*arguments)
        draft.order = [max(place, word) for place, word in enumerate(draft.order)]
        return draft

    return draw


def _swaps_at_half_the_rate(right):
    return lambda text, rng, swap, *others: right(text, rng, swap / 2, *others)


def _keeps_what_it_should_leave_out(right):
    return lambda text, rng, swap, deletion, *others: right(text, rng, swap, 1 - deletion, *others)


def _may_leave_no_word(right):
    def draw(text, rng, swap, deletion, *others):
        draft = right(text, rng, swap, deletion, *others)
        draft.kept = (rng.random(len(draft.kept)) >= deletion).tolist()
        return draft

    return draw


def _keeps_the_first_word_where_one_must_stay(right):
    def draw(*arguments):
        draft = right(*arguments)
        if sum(draft.kept) == 1:
            draft.kept.sort(reverse=True)
        return draft

    return draw


def _takes_the_first_synonym(right):
    return lambda *given: right(*given[:4], {word: others[:1] for word, others in given[4].items()}, given[5])


def _replaces_every_word_it_knows(right):
    return lambda *given: right(*given[:5], 1.0)


def _forgets_capitals_and_punctuation(_):
    return lambda word, synonym: synonym


def _draws_by_the_place_in_the_batch(right):
    def keys(self, purpose):
        return [stream_key(self.seed, purpose, place) for place, _ in enumerate(self.numbers)]

    return keys


def _draws_the_same_in_every_pass(right):
    return lambda self, purpose: [stream_key(self.seed, purpose, number) for number in self.numbers]


def _draws_the_same_with_every_seed(right):
    return lambda self, purpose: right(self._replace(seed=0), purpose)


def _gives_the_function_one_stream_for_all(right):
    return lambda self, seed: right(self, 0)


def _gives_the_function_a_stream_without_a_seed(right):
    return lambda self, seed: right(self, int(np.random.default_rng().integers(2**63)))


DELETED = texts.test_words_are_deleted_at_their_rate_and_the_rest_stays_in_order
ONE_KEPT = texts.test_one_word_is_always_kept_each_as_often
SWAPPED = texts.test_words_are_swapped_at_their_rate_and_none_is_lost
REPLACED = texts.test_synonyms_come_at_their_rate_each_as_often
KEYED = augmented.test_an_example_s_draws_are_its_own_of_its_pass_and_of_training
FUNCTION = {"keys": {"text_function": "mine.py:shorter"}}
PLANTED: list[tuple[Any, Any, Any, dict[str, Any]]] = [
    (rewording.draw, _takes_a_copy_and_exchanges_nothing, SWAPPED, {}),
    (rewording.draw, _swaps_at_half_the_rate, SWAPPED, {}),
    (rewording.draw, _keeps_what_it_should_leave_out, DELETED, {}),
    (rewording.draw, _may_leave_no_word, ONE_KEPT, {}),
    (rewording.draw, _keeps_the_first_word_where_one_must_stay, ONE_KEPT, {}),
    (rewording.draw, _takes_the_first_synonym, REPLACED, {}),
    (rewording.draw, _replaces_every_word_it_knows, REPLACED, {}),
    (rewording._put, _forgets_capitals_and_punctuation, texts.test_a_synonym_takes_over_capital_and_punctuation, {}),
    (collation.Wanted.keys, _draws_by_the_place_in_the_batch, KEYED, {}),
    (collation.Wanted.keys, _draws_the_same_in_every_pass, KEYED, {}),
    (collation.Wanted.keys, _draws_the_same_with_every_seed, KEYED, {}),
    (TextAugmentation._finish, _gives_the_function_one_stream_for_all, KEYED, FUNCTION),
    (TextAugmentation._finish, _gives_the_function_a_stream_without_a_seed, KEYED, FUNCTION),
]  # fmt: skip
"""What is computed wrongly, how, the check that must see it, and what the check is given besides fixtures."""


@pytest.mark.parametrize(("right", "bug", "check", "given"), PLANTED, ids=[bug.__name__ for _, bug, *_ in PLANTED])
def test_a_planted_bug_is_caught(request, monkeypatch, right, bug, check, given):
    must_fail(request, monkeypatch, right, bug, check, given)
