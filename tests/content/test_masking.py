from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecurve.content.masking import NO_WORD, choose, hide, num_hidden


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=30), share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_exactly_so_many_are_chosen_and_at_most_one_word_in_part(sizes: list[int], share: float, seed: int) -> None:
    words = [NO_WORD, *(number for number, size in enumerate(sizes) for _ in range(size)), NO_WORD, NO_WORD]
    count = num_hidden(words, share)
    assert count == max(1, round(share * sum(sizes)))
    chosen = choose(np.array(words), count, np.random.default_rng(seed)).tolist()
    assert len(chosen) == len(set(chosen)) == count and chosen == sorted(chosen)
    assert all(words[place] != NO_WORD for place in chosen)
    parts = [number for number, size in enumerate(sizes) if 0 < sum(words[p] == number for p in chosen) < size]
    assert len(parts) <= 1
    if parts:  # only where no whole word was left that fits what is missing
        missing = sum(words[place] == parts[0] for place in chosen)
        whole = {words[place] for place in chosen} - set(parts)
        assert all(size > missing for number, size in enumerate(sizes) if number not in whole)


def test_no_token_of_a_text_without_words_is_hidden() -> None:
    assert num_hidden([NO_WORD, NO_WORD], 0.15) == 0


def test_every_word_comes_up_as_often_as_any_other_of_its_size() -> None:
    words, counts = np.array([NO_WORD, *(n // 2 for n in range(20)), NO_WORD]), np.zeros(22)
    for seed in range(2000):
        counts[choose(words, 4, np.random.default_rng(seed))] += 1
    assert not counts[[0, -1]].any()
    assert np.abs(counts[1:-1] / 2000 - 0.2).max() < 0.04  # 4.5 standard deviations


def test_a_part_of_a_word_is_any_part_of_it() -> None:
    seen = {tuple(choose(np.zeros(5, int), 2, np.random.default_rng(seed))) for seed in range(200)}
    assert len(seen) == 10


@pytest.mark.parametrize("shares", [(0.8, 0.1), (1.0, 0.0), (0.0, 0.0), (0.5, 0.5)])
def test_the_shares_are_those_asked_for(shares: tuple[float, float]) -> None:
    ids, others = np.full(20_000, 7), np.arange(100, 200)
    read = hide(ids, 3, others, shares, np.random.default_rng(1))
    found = [(read == 3).mean(), ((read >= 100) & (read < 200)).mean(), (read == 7).mean()]
    assert found == pytest.approx([*shares, 1 - sum(shares)], abs=0.015)
    assert set(read) <= {3, 7, *range(100, 200)} and (ids == 7).all()
    if shares[1]:
        assert set(others) <= set(read), "not every other token is drawn"


def test_the_draws_are_the_stream_s(monkeypatch: Any) -> None:
    words, ids, others = np.array([0, 0, 1, 2, 2, 2, 3]), np.arange(7), np.arange(50)

    def draw() -> tuple[list[int], list[int]]:
        rng = np.random.default_rng(5)
        return choose(words, 3, rng).tolist(), hide(ids, 99, others, (0.4, 0.4), rng).tolist()

    first = draw()
    np.random.seed(1)  # the global generator has no part in it
    assert draw() == first
