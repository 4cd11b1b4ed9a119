"""Changed texts: the rates of what is drawn against their definition, and what is never lost."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from onecurve.content.rewording import Words, draw

WORDS = [f"w{i}" for i in range(200)]
TEXT = " ".join(WORDS)


def rng(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def changed(text, key, swap=0.0, deletion=0.0, synonyms=None, share=0.0):
    return draw(text, rng(key), swap, deletion, synonyms or {}, share).text


@pytest.mark.parametrize(
    "text", ["a b", " a\tb \n", "", "  ", "one", "今天天气 fine、好。", "(Good), bad!\n\nand more\n"]
)
def test_nothing_drawn_changes_nothing(text):
    assert changed(text, 1) == text
    words = Words.of(text)
    assert words.before + "".join(map("".join, zip(words.words, words.gaps, strict=True))) == text


def test_words_are_deleted_at_their_rate_and_the_rest_stays_in_order():
    left = [changed(TEXT, key, deletion=0.1).split() for key in range(100)]
    assert sum(map(len, left)) / (100 * 200) == pytest.approx(0.9, abs=0.01)  # standard deviation 0.002
    of_words = Counter(word for words in left for word in words)
    assert min(of_words.values()) > 70, "some word is deleted more often than others"
    for words in left:
        assert words == sorted(words, key=WORDS.index)


def test_one_word_is_always_kept_each_as_often():
    kept = Counter(changed("a b c", key, deletion=0.999999) for key in range(600))
    assert set(kept) == {"a", "b", "c"} and min(kept.values()) > 140


def test_words_are_swapped_at_their_rate_and_none_is_lost():
    found = [changed(TEXT, key, swap=0.1).split() for key in range(100)]
    assert all(sorted(words) == sorted(WORDS) for words in found)
    moved = sum(a != b for words in found for a, b in zip(words, WORDS, strict=True)) / (100 * 200)

    oracle, draws = 0.0, random.Random(1)  # the definition, by another generator
    for _ in range(100):
        places = list(range(200))
        for place in range(200):
            if draws.random() < 0.1:
                other = draws.choice([i for i in range(200) if i != place])
                places[place], places[other] = places[other], places[place]
        oracle += sum(i != place for i, place in enumerate(places)) / (100 * 200)
    assert moved == pytest.approx(oracle, abs=0.01)
    assert 0.15 < moved < 0.2


def test_synonyms_come_at_their_rate_each_as_often():
    listed = {word: ["x", "y z"] for word in WORDS[:100]}
    found = " ".join(changed(TEXT, key, synonyms=listed, share=0.2) for key in range(100))
    counts = Counter(found.replace("y z", "y").split())
    assert (counts["x"] + counts["y"]) / (100 * 100) == pytest.approx(0.2, abs=0.015)
    assert counts["x"] == pytest.approx(counts["y"], rel=0.15)
    assert counts["w150"] == 100


def test_a_synonym_takes_over_capital_and_punctuation():
    listed = {"good": ["fine"], "don't": ["never"], "好": ["佳"]}
    assert changed('"Good," he said; GOOD (good)! Goods.', 1, synonyms=listed, share=1.0) == (
        '"Fine," he said; Fine (fine)! Goods.'
    )
    assert changed("don't\tgood\n", 1, synonyms=listed, share=1.0) == "never\tfine\n"
    assert changed("天气好。", 1, synonyms=listed, share=1.0) == "天气佳。"


def test_letters_of_scripts_without_spaces_are_words():
    found = {changed("今天天气很好", key, swap=0.5) for key in range(20)}
    assert len(found) > 10 and all(sorted(text) == sorted("今天天气很好") for text in found)


def test_white_space_stays_where_it_is():
    found = changed("a b\n\nc\td", 3, swap=0.9)
    assert re.sub(r"\w", "_", found) == "_ _\n\n_\t_" and found != "a b\n\nc\td"


def test_synonyms_are_taken_back_from_the_last():
    draft = draw("good bad good", rng(1), 0.0, 0.0, {"good": ["fine"]}, 1.0)
    assert draft.text == "fine bad fine"
    assert draft.undo() and draft.text == "fine bad good"
    assert draft.undo() and not draft.undo() and draft.text == "good bad good"
